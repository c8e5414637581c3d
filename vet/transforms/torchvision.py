"""Every transform of torchvision.transforms.v2, by its class name, and how lists of them become image ->
tensor.

A transform that takes `size` or `interpolation` gets the backbone's own where the config gives none.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Interval
from PIL import Image
from torchvision.transforms import v2

from vet.errors import UnknownNameError, UserError
from vet.registry import TRANSFORMS
from vet.transforms.ranges import RANGES, Pixels

LARGEST = 2**26  # pixels that a resized image may have

OWN = ('Normalize', 'ToTensor')  # which are registered below

PIXELS = (-0.25, 1.25)  # where the floats of an image lie: 0 to 1, and what a bicubic resize adds at edges
OUTSIDE = 0.25  # the share of an image that a transform may leave elsewhere: noise in an erased part
FIXED = (
    'CenterCrop',
    'ConvertImageDtype',
    'Grayscale',
    'Identity',
    'Normalize',
    'PILToTensor',
    'Pad',
    'RGB',
    'Resize',
    'ToDtype',
    'ToImage',
    'ToPureTensor',
    'ToTensor',
)

TRANSFORMS.arguments.update(RANGES)

for _name, _transform in vars(v2).items():
    if (
        _name not in OWN
        and inspect.isclass(_transform)
        and issubclass(_transform, v2.Transform)
        and not _name.startswith('_')
    ):
        TRANSFORMS.register_module(name=_name, module=_transform)


@TRANSFORMS.register_module(force=True)
class Resize(v2.Resize):
    """torchvision's Resize, bit for bit, for every image that does not become larger than LARGEST pixels.

    A long and thin image becomes huge where its short side is made `size`: 1 x 20,000 pixels become 256 x
    5,120,000. Such a PIL image becomes its centre of `kept` (height, width) alone, where a CenterCrop of that
    size comes next, and nothing else is computed. Where `kept` is None, the image is refused with a
    ValueError.
    """

    def __init__(
        self,
        size: int | Sequence[int] | None,
        interpolation: Any = 'bilinear',
        max_size: int | None = None,
        antialias: bool | None = True,
        kept: Sequence[int] | None = None,
    ):
        super().__init__(size, interpolation, max_size, antialias)
        self.kept = None if kept is None else tuple(kept)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = v2.functional.get_size(inpt)
        if (
            self.size is None or len(self.size) > 1 or self.max_size is not None
        ):  # then the config bounds both sides
            return super().transform(inpt, params)
        [short] = self.size
        factor = short / min(height, width)
        new_height, new_width = (
            short if side == min(height, width) else int(short * side / min(height, width))
            for side in (height, width)
        )
        if new_height * new_width <= LARGEST:
            return super().transform(inpt, params)
        if self.kept is None or not isinstance(inpt, Image.Image):
            raise ValueError(
                f'an image of {width:,} x {height:,} pixels is too long and thin: a Resize of its short side '
                f'to {short} would make {new_width:,} x {new_height:,}. Leave the image out, cut it into '
                'parts, or begin the transform with RandomResizedCrop, or with a Resize of a size of two '
                'numbers'
            )
        sides = [min(kept, new) for kept, new in zip(self.kept, (new_height, new_width))]
        top, left = (
            int(round((new - side) / 2)) for new, side in zip((new_height, new_width), sides)
        )  # as CenterCrop cuts
        box = (
            left / factor,
            top / factor,
            min((left + sides[1]) / factor, width),
            min((top + sides[0]) / factor, height),
        )
        return inpt.resize((sides[1], sides[0]), _resampling(self.interpolation), box)


STILL = (
    Resize,
    v2.Resize,
    v2.CenterCrop,
)  # an RGB image to an RGB image, the same each time; their repr says all that they are


def may_evaluate(name: str) -> bool:
    """Whether a model folder may name this transform of images to evaluate: a fixed one of torchvision,
    or the user's own.
    """
    return name in FIXED or name not in vars(v2)


@TRANSFORMS.register_module()
class EvaluationCrop(v2.Compose):
    """Resize so that a centre crop of `size` (H, W) takes `crop_pct` of it: the evaluation of timm and
    torchvision.
    """

    def __init__(
        self,
        size: Pixels | tuple[Pixels, Pixels],
        crop_pct: Annotated[float, Interval(ge=0.05, le=1)],
        interpolation: str = 'bicubic',
    ):
        size = (size, size) if isinstance(size, int) else size
        short = int(min(size) / crop_pct)
        resized = short if size[0] == size[1] else [int(side / crop_pct) for side in size]
        super().__init__([Resize(resized, _mode(interpolation), kept=size), v2.CenterCrop(size)])


@TRANSFORMS.register_module()
class ToTensor(v2.Compose):
    """torchvision.transforms.ToTensor for every kind of image: floats (3, H, W) in 0..1."""

    def __init__(self) -> None:
        super().__init__([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


@TRANSFORMS.register_module(name='Normalize')
class Normalisation(v2.Normalize):
    """(image - mean) / std of image tensors (..., 3, H, W): uint8, or floats in 0..1. The only place where
    images are normalised.

    The image that is given stays what it is. A gray image gets as many channels as the mean has. Of a whole
    batch the normalisation gives what it gives of each image. UserError for floats that are normalised
    already, or that are not scaled.
    mean: from -1 to 2, std: from 0.001 to 10, each three numbers or one, in units of images of 0..1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], inplace: bool = False):
        super().__init__(mean, std, inplace)
        for name, values, low, high in (('mean', self.mean, -1, 2), ('std', self.std, 0.001, 10)):
            if len(values) not in (1, 3) or not all(low <= value <= high for value in values):
                raise ValueError(
                    f'{name} is {list(values)}; allowed: three numbers, or one, from {low} to {high}'
                )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        floats = v2.functional.to_dtype(images, torch.float32, scale=True)
        if images.is_floating_point():
            low, high = PIXELS
            if not (~((images >= low) & (images <= high))).float().mean() <= OUTSIDE:
                raise UserError(
                    f'images have {_values(images)} before they are normalised, so that they are normalised '
                    'already, or not scaled to 0..1. Let the transform give uint8, or floats in 0..1.'
                )
        inplace = not images.is_floating_point() and floats.shape[-3] == len(self.mean)  # `floats` is new
        return v2.functional.normalize(floats, list(self.mean), list(self.std), inplace)


def build_transform(
    entries: Sequence[Mapping[str, Any]] | None,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float,
    interpolation: str,
    gray_range: Any = None,
) -> Callable[[Image.Image], torch.Tensor]:
    """PIL RGB image -> float tensor (3, H, W), normalised once. `entries` None: the evaluation crop.

    The transform ends with a Normalize of `mean` and `std`, but where `entries` have a Normalize, which then
    is the only one. UserError for two of them. gray_range is of the opening of images, before any transform.
    """
    settings = dict(size=size, crop_pct=crop_pct, interpolation=_mode(interpolation))
    steps = []
    for entry in entries if entries is not None else [dict(type='EvaluationCrop')]:
        given = dict(entry)
        if 'interpolation' in given:
            given['interpolation'] = _mode(given['interpolation'])
        if isinstance(given.get('dtype'), str):
            given['dtype'] = _dtype(given['dtype'])
        step = TRANSFORMS.build(given, **settings)
        steps += [v2.ToImage(), step] if isinstance(step, v2.Normalize) else [step]
    number = sum(isinstance(part, v2.Normalize) for step in steps for part in _flat(step))
    if number > 1:
        raise UserError(
            f'a transform has {number} steps of type Normalize; an image is normalised once. Leave them out: '
            'the images are then normalised as the backbone needs it.'
        )
    return v2.Compose(steps if number else [*steps, v2.ToImage(), Normalisation(mean, std)])


def normalisation(transform: Callable) -> tuple[list[float], list[float]]:
    """The mean and std by which a transform of `build_transform` normalises."""
    step = next(step for step in _flat(transform) if isinstance(step, v2.Normalize))
    return list(step.mean), list(step.std)


def refuse_unless_pixels(image: torch.Tensor) -> None:
    """UserError for a tensor that is no image: (1, H, W) or (3, H, W) of uint8, or of floats in 0..1
    that nobody has normalised.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise UserError(
            f'a dataset gives a tensor of shape {tuple(image.shape)} as an image; allowed: (3, H, W), or (1, '
            'H, W) for gray.'
        )
    if image.is_floating_point():
        low, high = PIXELS
        if not (image.min() >= low and image.max() <= high):
            raise UserError(
                f'a dataset gives a float image with {_values(image)}; allowed are floats in 0..1. Take '
                'Normalize out of the transform of the dataset, or divide by 255: vet normalises by the '
                'mean and std of the backbone.'
            )
    elif image.dtype != torch.uint8:
        raise UserError(
            f'a dataset gives an image tensor of {str(image.dtype)}; allowed: uint8, or floats in 0..1.'
        )


def split_still(transform: Callable) -> tuple[list[v2.Transform], Callable]:
    """What a transform begins with that gives of an image the same image each time, as a list, and what
    is left of it.
    """
    steps = _flat(transform)
    number = next((i for i, step in enumerate(steps) if type(step) not in STILL), len(steps))
    return steps[:number], v2.Compose(steps[number:]) if number else transform


def on_tensors(transform: Callable) -> Callable:
    """A transform of which what follows its still beginning sees a uint8 tensor (3, H, W), with channels last
    in memory, in place of a PIL image. It draws the same; what it resizes differs by rounding, what it
    rotates also at the edges."""
    still, rest = split_still(transform)
    return v2.Compose(
        [*still, v2.PILToTensor(), rest]
    )  # which leaves an image as it is that is a tensor already


def begins_as_tensor(transform: Callable) -> bool:
    """Whether it makes a tensor of an image before all else."""
    return type(_flat(transform)[0]) is v2.PILToTensor


def split_at_tensor(transform: Callable) -> tuple[Callable, Callable]:
    """A transform that `on_tensors` gave, up to the tensor, and what is left of it."""
    steps = _flat(transform)
    number = next(i for i, step in enumerate(steps, 1) if type(step) is v2.PILToTensor)
    return v2.Compose(steps[:number]), v2.Compose(steps[number:])


def split_normalisation(transform: Callable) -> tuple[Callable, Callable]:
    """A transform up to the normalisation that it ends with, and that."""
    steps = _flat(transform)
    if len(steps) < 2 or type(steps[-1]) is not Normalisation:
        return transform, v2.Identity()
    return v2.Compose(steps[:-1]), steps[-1]


def _flat(transform: Callable) -> list[Any]:
    """The steps of a Compose, one after the other, those of each Compose within it too."""
    if not isinstance(transform, v2.Compose) or type(transform).forward is not v2.Compose.forward:
        return [transform]
    return [step for part in transform.transforms for step in _flat(part)]


def _resampling(mode: Any) -> Image.Resampling:
    return Image.Resampling[v2.InterpolationMode(mode).name.removesuffix('_EXACT')]


def _mode(name: Any) -> v2.InterpolationMode:
    try:
        return v2.InterpolationMode(name)
    except ValueError:
        raise UnknownNameError('interpolation', name, [mode.value for mode in v2.InterpolationMode]) from None


def _dtype(name: str) -> torch.dtype:
    """'float32' or 'torch.float32' as torch's own: a config holds texts."""
    dtypes = {key: value for key, value in vars(torch).items() if isinstance(value, torch.dtype)}
    if name.removeprefix('torch.') not in dtypes:
        raise UnknownNameError('dtype', name, dtypes)
    return dtypes[name.removeprefix('torch.')]


def _values(images: torch.Tensor) -> str:
    return f'values from {images.min():.3g} to {images.max():.3g}'
