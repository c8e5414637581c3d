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


def _mode(name: Any) -> v2.InterpolationMode:
    try:
        return v2.InterpolationMode(name)
    except ValueError:
        raise UnknownNameError('interpolation', name, [mode.value for mode in v2.InterpolationMode]) from None
