"""A head made from text embeddings of the class names: zero-shot before training, and a start of training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Interval, MinLen
from torch import nn

from vet.allowed import Classes, Text
from vet.core.head import StartedHead
from vet.core.permits import NOTHING, number, permits, whole
from vet.core.tensor_file import read_tensors
from vet.errors import DataError, UserError
from vet.registry import HEADS

PROMPTS = ('a photo of a {}.',)
ADVICE = 'Write the file again: one vector for each class, all of one length.'


@HEADS.register_module(name='Text')
@permits(
    num_classes=whole(1, 1_000_000),
    scale=number(0.01, 1000),
    file=NOTHING,
    tower=NOTHING,
    tower_weights=NOTHING,
    prompts=NOTHING,
)
class TextHead(StartedHead):
    """logits_k = scale * cos(f, w_k): features (B, C) -> (B, K), in float32. w_k starts as class k's text.

    The features must lie in the space of the text: keep the projection of a CLIP with
    model.backbone.classifier=True.
    file: the embeddings: a .safetensors or .json file of {class name: vector}, or a .npy file (K, C) in the
        order of the classes.
    tower: in place of a file, the name of an OpenCLIP model, such as 'ViT-B-16', whose text tower makes the
        embeddings. tower_weights: a file of weights, or OpenCLIP's name for them, such as 'openai'. prompts:
        texts with {} for the class name; an embedding is the mean over the prompts.
    scale: CLIP ends its training at 100.
    A model folder holds w and its start, and neither file nor tower. Parameters: C K.
    """

    start: torch.Tensor
    only_at_start = ('file', 'tower', 'tower_weights', 'prompts')

    def __init__(
        self,
        in_features: int,
        num_classes: Classes,
        names: Sequence[str] = (),
        file: Text | None = None,
        tower: Text | None = None,
        tower_weights: Text | None = None,
        prompts: Annotated[list[Text], MinLen(1)] | None = None,
        scale: Annotated[float, Interval(ge=0.01, le=1000)] = 100.0,
    ):
        super().__init__()
        if file is not None and tower is not None:
            raise UserError('model.head has a file and a tower; give one of the two.')
        start = torch.zeros(num_classes, in_features)
        if file is not None:
            start = of_file(Path(file), names)
        elif tower is not None:
            start = of_tower(tower, tower_weights, list(prompts or PROMPTS), names)
        if start.shape != (num_classes, in_features):
            raise UserError(
                f'the text embeddings have the shape {tuple(start.shape)}, but the dataset has {num_classes} '
                f'classes, and the backbone gives {in_features} features. Use the embeddings of the same '
                'CLIP, and keep the projection of the backbone with model.backbone.classifier=True.'
            )
        if not start.isfinite().all():
            raise UserError(
                f'the text embeddings have {int((~start.isfinite()).sum()):,} numbers that are not finite. '
                f'{ADVICE}'
            )
        self.scale = scale
        self.weight = nn.Parameter(F.normalize(start, dim=1))
        self.register_buffer('start', self.weight.detach().clone())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self.scale * F.normalize(features.float(), dim=1) @ F.normalize(self.weight, dim=1).T

    def starts(self) -> dict[str, torch.Tensor]:
        return dict(weight=self.start)


def of_file(path: Path, names: Sequence[str]) -> torch.Tensor:
    """The embeddings (K, C) of the classes `names`, in their order.

    DataError for a file that lacks a class.
    """
    try:
        if path.suffix == '.npy':
            return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32, casting='same_kind'))
        if path.suffix == '.json':
            found: Mapping[str, Any] = json.loads(path.read_bytes())
        elif path.suffix == '.safetensors':
            found = read_tensors(path, ADVICE)
        else:
            raise DataError(f'model.head.file is {str(path)!r}; allowed: .safetensors, .json or .npy.')
        if missing := [name for name in names if name not in found]:
            raise DataError(
                f'{str(path)!r} has no embedding of {missing[0]!r} ({len(missing)} of {len(names)} classes '
                f'are missing). The file has {", ".join(list(found)[:3])}, …. Give the same names.'
            )
        return torch.stack([torch.as_tensor(found[name]).float() for name in names])
    except UserError:
        raise
    except OSError as error:
        raise DataError(f'model.head.file {str(path)!r} cannot be read: {error.strerror}.') from error
    except (ValueError, TypeError, AttributeError, RuntimeError, EOFError) as error:
        raise DataError(f'model.head.file {str(path)!r} holds no embeddings: {error}. {ADVICE}') from error


@torch.no_grad()
def of_tower(tower: str, weights: str | None, prompts: Sequence[str], names: Sequence[str]) -> torch.Tensor:
    """The embeddings (K, C) of the class names by the text tower of an OpenCLIP model: means over prompts."""
    if wrong := [prompt for prompt in prompts if '{}' not in prompt]:
        raise UserError(f'model.head.prompts has {wrong[0]!r} without {{}}, the place of the class name.')
    if weights is None:
        raise UserError(
            'model.head.tower needs tower_weights: a file, or a name of OpenCLIP such as "openai". Without '
            'weights, the embeddings would be random.'
        )
    try:
        import open_clip
    except ImportError as error:
        raise UserError(
            f'model.head.tower={tower!r} needs the package open_clip_torch, which is not installed. Install '
            'the package, or give a file of embeddings.'
        ) from error
    try:
        model = open_clip.create_model(tower, pretrained=weights).eval()
    except (RuntimeError, OSError) as error:
        raise UserError(
            f'OpenCLIP cannot make {tower!r} with the weights {weights!r}: {error}. '
            'open_clip.list_pretrained() lists the names; a file must hold weights of this model.'
        ) from error
    tokens = open_clip.get_tokenizer(tower)
    rows = []
    for name in names:
        texts = [prompt.replace('{}', name.replace('_', ' ')) for prompt in prompts]
        rows.append(model.encode_text(tokens(texts), normalize=True).float().mean(0))
    return torch.stack(rows)
