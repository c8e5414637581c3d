"""Every transform of torchvision.transforms.v2, by its class name, and how lists of them become image -> tensor.

A transform that takes `size` or `interpolation` gets the backbone's own where the config gives none.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import v2

from vet.errors import UnknownNameError
from vet.registry import TRANSFORMS

STILL = (v2.Resize, v2.CenterCrop)      # an RGB image to an RGB image, the same each time, and their repr says all that they are

for _name, _transform in vars(v2).items():
    if inspect.isclass(_transform) and issubclass(_transform, v2.Transform) and not _name.startswith('_'):
        TRANSFORMS.register_module(name=_name, module=_transform)


@TRANSFORMS.register_module()
class EvaluationCrop(v2.Compose):
    """Resize so that a centre crop of `size` (H, W) takes `crop_pct` of it: the evaluation of timm and torchvision."""

    def __init__(self, size: tuple[int, int], crop_pct: float, interpolation: str = 'bicubic'):
        short = int(min(size) / crop_pct)
        resized = short if size[0] == size[1] else [int(side / crop_pct) for side in size]
        super().__init__([v2.Resize(resized, _mode(interpolation)), v2.CenterCrop(size)])


def build_transform(entries: Sequence[Mapping[str, Any]] | None, size: tuple[int, int], mean: Sequence[float],
                    std: Sequence[float], crop_pct: float, interpolation: str) -> Callable[[Image.Image], torch.Tensor]:
    """PIL RGB image -> float tensor (3, H, W), normalised. `entries` None: the evaluation crop."""
    settings = dict(size=size, crop_pct=crop_pct, interpolation=_mode(interpolation))
    steps = []
    for entry in entries if entries is not None else [dict(type='EvaluationCrop')]:
        given = dict(entry)
        if 'interpolation' in given:
            given['interpolation'] = _mode(given['interpolation'])
        steps.append(TRANSFORMS.build(given, **settings))
    return v2.Compose([*steps, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def split_still(transform: Callable) -> tuple[list[v2.Transform], Callable]:
    """What a transform begins with that gives of an image the same image each time, as a list, and what is left of it."""
    steps = _flat(transform)
    number = next((i for i, step in enumerate(steps) if type(step) not in STILL), len(steps))
    return steps[:number], v2.Compose(steps[number:]) if number else transform


def on_tensors(transform: Callable) -> Callable:
    """A transform of which what follows its still beginning sees a uint8 tensor (3, H, W), with channels last in memory, in place
    of a PIL image. It draws the same; what it resizes differs by rounding, what it rotates also at the edges."""
    still, rest = split_still(transform)
    return v2.Compose([*still, v2.PILToTensor(), rest])     # which leaves an image as it is that is a tensor already


def begins_as_tensor(transform: Callable) -> bool:
    """Whether it makes a tensor of an image before all else."""
    return type(_flat(transform)[0]) is v2.PILToTensor


def split_at_tensor(transform: Callable) -> tuple[Callable, Callable]:
    """A transform that `on_tensors` gave, up to the tensor, and what is left of it."""
    steps = _flat(transform)
    number = next(i for i, step in enumerate(steps, 1) if type(step) is v2.PILToTensor)
    return v2.Compose(steps[:number]), v2.Compose(steps[number:])


class Normalisation(v2.Compose):
    """ToDtype and Normalize, in place where that can be: not of floats that are given, nor of gray images, which get as many
    channels as the mean has. Of a whole batch it gives what it gives of each image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        convert, normalise = self.transforms
        floats = convert(images)
        inplace = floats is not images and floats.shape[-3] == len(normalise.mean)
        return v2.functional.normalize(floats, normalise.mean, normalise.std, inplace)


def split_normalisation(transform: Callable) -> tuple[Callable, Callable]:
    """A transform up to the conversion to normalised floats that it ends with, and that."""
    steps = _flat(transform)
    if list(map(type, steps[-2:])) != [v2.ToDtype, v2.Normalize] or len(steps) == 2:
        return transform, v2.Identity()
    return v2.Compose(steps[:-2]), Normalisation(steps[-2:])


def _flat(transform: Callable) -> list[Any]:
    """The steps of a Compose, one after the other, those of each Compose within it too."""
    if not isinstance(transform, v2.Compose) or type(transform).forward is not v2.Compose.forward:
        return [transform]
    return [step for part in transform.transforms for step in _flat(part)]


def _mode(name: Any) -> v2.InterpolationMode:
    try:
        return v2.InterpolationMode(name)
    except ValueError:
        raise UnknownNameError('interpolation', name, [mode.value for mode in v2.InterpolationMode]) from None
