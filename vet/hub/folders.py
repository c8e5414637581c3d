"""A folder as a model, whichever library wrote it: its files say which."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vet.core.model import ImageClassifier
from vet.core.multitask import MultiTaskClassifier
from vet.errors import UserError
from vet.hub.model_folder import load_model, read_configuration
from vet.hub.modelscope import is_modelscope, load_modelscope


def read_folder(folder: Path, backbone: str | Path | Mapping[str, str | Path] | None = None
                ) -> tuple[ImageClassifier | MultiTaskClassifier, list[dict[str, Any]] | None]:
    """The model of a folder of vet's or of ModelScope's, and the transform of its images (None: the backbone's own).

    backbone: where the backbone's weights are now, as of load_model. UserError for a folder that holds them itself.
    """
    if not is_modelscope(folder):
        return load_model(folder, backbone), (read_configuration(folder).get('evaluation') or {}).get('transform')
    if backbone is not None:
        raise UserError(f'backbone is {str(backbone)!r}, but {str(folder)!r} holds its own weights: a file of ModelScope holds the '
                        f'weights of its backbone; leave it out.')
    return load_modelscope(folder), None
