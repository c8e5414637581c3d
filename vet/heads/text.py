"""Heads made from text embeddings of the class names: zero-shot before training, and a start of training."""

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
from vet.core.head import FittedHead, StartedHead
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
        embeddings.
    tower_weights: a file of the tower's weights, or OpenCLIP's name for the weights, such as 'openai'.
    prompts: texts with {} for the class name. An embedding is the mean over the prompts.
    scale: the factor of the cosine. CLIP ends its training at 100.
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
        self.names = list(names)
        self.weight = nn.Parameter(F.normalize(start, dim=1))
        self.register_buffer('start', self.weight.detach().clone())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self.scale * F.normalize(features.float(), dim=1) @ F.normalize(self.weight, dim=1).T

    def starts(self) -> dict[str, torch.Tensor]:
        return dict(weight=self.start)

    def refuse_no_start(self) -> None:
        if (empty := ~self.start.any(1)).any():
            number = int(empty.nonzero()[0])
            name = self.names[number] if number < len(self.names) else number
            raise UserError(
                f'the head {HEADS.called(self)!r} has no text embedding of the class {name!r}: '
                f'{int(empty.sum())} of {len(empty)} are zero. Give model.head.file, the embeddings of all '
                'classes, or model.head.tower with tower_weights.'
            )


@HEADS.register_module(name='TipAdapter')
@permits(
    num_classes=whole(1, 1_000_000),
    scale=number(0.01, 1000),
    shots=whole(1, 10_000),
    alpha=number(0, 1e6),
    beta=number(0, 1e6),
    file=NOTHING,
    tower=NOTHING,
    tower_weights=NOTHING,
    prompts=NOTHING,
)
class TipAdapterHead(TextHead, FittedHead):
    """logits_k = scale cos(f, w_k) + alpha sum over the images i of class k of exp(-beta (1 - f k_i)).

    Zhang et al. 2022, arXiv:2207.09511

    A cache of training images beside the texts: k_i and f are features of length 1. With train.max_epochs=0,
    this is Tip-Adapter, without a step. With more epochs the keys k_i train, which is Tip-Adapter-F. The
    texts w never train.
    shots: how many images of each class the cache holds: the first in the order of the dataset.
    alpha, beta: the released configs begin with alpha from 1.17 to 10, by dataset, and with beta 1. They
        search both on the validation images.
    file, tower, tower_weights, prompts, scale: see Text.
    Against the released code: the logits. The code takes means over ten augmented views for its keys, and the
    weights of the texts from several prompts. Here a key is of one view, as evaluation sees the image.
    Parameters: shots K C.
    """

    targets = ('one class',)
    filled: torch.Tensor

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
        shots: Annotated[int, Interval(ge=1, le=10_000)] = 16,
        alpha: Annotated[float, Interval(ge=0, le=1e6)] = 1.0,
        beta: Annotated[float, Interval(ge=0, le=1e6)] = 5.5,
    ):
        super().__init__(in_features, num_classes, names, file, tower, tower_weights, prompts, scale)
        self.weight.requires_grad_(False)
        self.shots = shots
        self.alpha = alpha
        self.beta = beta
        self.keys = nn.Parameter(torch.zeros(num_classes, shots, in_features))
        self.register_buffer('filled', torch.zeros(num_classes, shots))

    @torch.no_grad()
    def fit(self, features_NC: torch.Tensor, coded_NK: torch.Tensor) -> None:
        labels_N = coded_NK.argmax(1)
        for label in labels_N.unique().tolist():
            chosen = F.normalize(features_NC[labels_N == label][: self.shots].float(), dim=1)
            self.keys[label, : len(chosen)] = chosen.to(self.keys)
            self.filled[label, : len(chosen)] = 1

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            f_BC = F.normalize(features.float(), dim=1)
            near_BKS = torch.exp(self.beta * (torch.einsum('bc,ksc->bks', f_BC, self.keys) - 1)) * self.filled
            return super().forward(features) + self.alpha * near_BKS.sum(2)


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
