"""Opens a model folder, whichever library wrote the folder. The files in the folder show the library."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vet.config import Views
from vet.core.augmented import read_tta
from vet.core.model import ImageClassifier
from vet.core.multitask import MultiTaskClassifier
from vet.core.tuned_model import TunedModel
from vet.errors import UserError
from vet.files import JsonObject
from vet.hub.model_folder import load_model, load_models, read_configuration
from vet.hub.modelscope import is_modelscope, load_modelscope
from vet.hub.names import find_folder

# where a backbone's weights are now: str, Path or {task: one of these}. None: where the folder says
Weights = Any
Transform = list[JsonObject] | None


def read_folders(
    folders: str | Path | Mapping[str, str | Path], backbone: Weights = None
) -> tuple[
    ImageClassifier | MultiTaskClassifier | TunedModel, dict[str | None, Transform], dict[str | None, Views]
]:
    """The model of one or several folders, with the transform of each task's images, see `read_folder`, and
    the views of test-time augmentation by task.

    {name: folder} gives a TunedModel, whose tasks are these names.
    """
    if not isinstance(folders, Mapping):
        path = find_folder(folders)
        model, transform = read_folder(path, backbone)
        return model, dict.fromkeys(model.tasks, transform), dict.fromkeys(model.tasks, _views(path))
    paths = {name: find_folder(folder) for name, folder in folders.items()}
    for folder in paths.values():
        if is_modelscope(folder):
            raise UserError(
                f'{str(folder)!r} is a folder of ModelScope, which holds its own weights; folders that share '
                'one backbone must be folders of vet.'
            )
    transforms: dict[str | None, Transform] = {name: _transform(folder) for name, folder in paths.items()}
    views: dict[str | None, Views] = {name: _views(folder) for name, folder in paths.items()}
    return load_models(paths, backbone), transforms, views


def read_folder(
    folder: Path, backbone: Weights = None
) -> tuple[ImageClassifier | MultiTaskClassifier, Transform]:
    """The model of a folder of vet or of ModelScope, and the transform of its images.

    None as transform means the backbone's own transform.
    backbone: where the backbone's weights are now, see `load_model`. UserError for a folder that holds the
        weights itself.
    """
    if not is_modelscope(folder):
        return load_model(folder, backbone), _transform(folder)
    if backbone is not None:
        raise UserError(
            f'backbone is {str(backbone)!r}, but {str(folder)!r} holds its own weights: a folder of '
            'ModelScope holds the weights of its backbone. Leave `backbone` out.'
        )
    return load_modelscope(folder), None


def _views(folder: Path) -> Views:
    if is_modelscope(folder):
        return Views()
    evaluation = read_configuration(folder).get('evaluation') or {}
    return read_tta(evaluation.get('tta'), repr(str(folder)))


def _transform(folder: Path) -> Transform:
    return (read_configuration(folder).get('evaluation') or {}).get('transform')
