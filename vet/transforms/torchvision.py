"""Every transform of torchvision.transforms.v2, by its class name. Lists of transforms become image ->
tensor.

If a transform takes `size` or `interpolation` and the config gives none, the transform gets the backbone's
value.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import Normalize, v2

from vet.allowed import Crop, Interpolation, Mean, Std, describe, fits
from vet.errors import UnknownNameError, UserError
from vet.registry import TRANSFORMS, Entry
from vet.transforms.masks import Jointly
from vet.transforms.ranges import RANGES, Pixels

LARGEST = 2**26  # pixels that a resized image may have

OWN = ('Normalize', 'ToTensor')  # names that vet's classes take; both are registered below

PIXELS = (-0.25, 1.25)  # range of an image's floats: 0 to 1, and a margin for the edges of a bicubic resize
OUTSIDE = 0.25  # share of an image's values that may lie outside PIXELS, such as noise in an erased part
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
TRANSFORMS.meanings['p'] = 'the probability of each distortion.'

for _name, _transform in vars(v2).items():
    if (
        _name not in (*OWN, 'Transform')  # Transform is torchvision's base class, which transforms nothing
        and inspect.isclass(_transform)
        and issubclass(_transform, v2.Transform)
        and not _name.startswith('_')
    ):
        TRANSFORMS.register_module(name=_name, module=_transform)


@TRANSFORMS.register_module(force=True)
class Resize(v2.Resize):
    """torchvision's Resize, bit for bit, for every image that does not become larger than LARGEST pixels.

    Resize sets the short side to `size`. So a long and thin image becomes huge: 1 x 20,000 pixels become 256
    x 5,120,000. For such a PIL image, this class computes only the centre.
    kept: the (height, width) of the centre, which is the size of the CenterCrop that follows. If `kept` is
        None, the image is refused with a ValueError.
    size, interpolation, max_size, antialias: torchvision's.
    """

    def __init__(
        self,
        size: int | Sequence[int] | None,
        interpolation: object = 'bilinear',
        max_size: int | None = None,
        antialias: bool | None = True,
        kept: Sequence[int] | None = None,
    ):
        super().__init__(size, interpolation, max_size, antialias)
        self.kept = None if kept is None else tuple(kept)

    def transform(self, inpt: object, params: dict[str, object]) -> Any:
        height, width = v2.functional.get_size(inpt)
        # several sizes, or max_size, bound both sides of the result
        if self.size is None or len(self.size) > 1 or self.max_size is not None:
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
        sides = [min(old, new) for old, new in zip(self.kept, (new_height, new_width))]
        # the same rounding as CenterCrop
        top, left = (int(round((new - side) / 2)) for new, side in zip((new_height, new_width), sides))
        box = (
            left / factor,
            top / factor,
            min((left + sides[1]) / factor, width),
            min((top + sides[0]) / factor, height),
        )
        return inpt.resize((sides[1], sides[0]), _resampling(self.interpolation), box)


# RGB image -> RGB image, the same each time; the repr of such a transform says all its settings
STILL = (Resize, v2.Resize, v2.CenterCrop)


def may_evaluate(name: str) -> bool:
    """Whether a model folder may name this transform for the evaluation.

    Allowed are the FIXED transforms of torchvision, and the user's own transforms.
    """
    return name in FIXED or name not in vars(v2)


@TRANSFORMS.register_module()
class EvaluationCrop(v2.Compose):
    """The evaluation transform of timm and torchvision: a resize, then a centre crop of `size` (H, W).

    crop_pct: the crop's share of each side of the resized image.
    interpolation: how the resize computes pixels.
    """

    def __init__(
        self,
        size: Pixels | tuple[Pixels, Pixels],
        crop_pct: Crop,
        interpolation: Interpolation | v2.InterpolationMode = 'bicubic',
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
    """(image - mean) / std of image tensors (..., 3, H, W): uint8, or floats in 0..1.

    vet normalises images nowhere else. The given tensor is not changed. A gray image gets as many channels as
    the mean has. A batch gives the same numbers as its images one by one. UserError for floats that are
    normalised already, or that are not scaled.
    mean, std: each is three numbers or one, in units of images in 0..1.
    inplace: changes nothing; torchvision's argument is accepted.
    """

    def __init__(self, mean: Sequence[Mean], std: Sequence[Std], inplace: bool = False):
        super().__init__(mean, std, inplace)
        for name, values, hint in (('mean', self.mean, Mean), ('std', self.std, Std)):
            if len(values) not in (1, 3) or not all(fits(value, hint) for value in values):
                raise ValueError(
                    f'{name} is {list(values)}; allowed: three numbers, or one, each {describe(hint)}'
                )

    def forward(self, images: torch.Tensor, *masks: torch.Tensor) -> Any:
        if not images.is_floating_point() and images.dtype != torch.uint8:
            raise UserError(
                f'images are {images.dtype} before they are normalised, whose range is not known. Let the '
                'transform give uint8, or floats in 0..1.'
            )
        floats = v2.functional.to_dtype(images, torch.float32, scale=True)
        if images.is_floating_point():
            low, high = PIXELS
            if not (~((images >= low) & (images <= high))).float().mean() <= OUTSIDE:
                raise UserError(
                    f'images have {_values(images)} before they are normalised, so that they are normalised '
                    'already, or not scaled to 0..1. Let the transform give uint8, or floats in 0..1.'
                )
        # if the images are no floats, `floats` is a new tensor, which may be changed in place
        inplace = not images.is_floating_point() and floats.shape[-3] == len(self.mean)
        normalised = v2.functional.normalize(floats, list(self.mean), list(self.std), inplace)
        return (normalised, *masks) if masks else normalised


def build_transform(
    entries: Sequence[Entry] | None,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float,
    interpolation: str,
    gray_range: Any = None,
    *,
    on_masks: bool = False,
) -> Callable[[Image.Image], torch.Tensor]:
    """PIL RGB image -> float tensor (3, H, W), normalised once. If `entries` is None: the evaluation crop.

    If `entries` have no Normalize, the transform ends with a Normalize of `mean` and `std`. UserError if
    `entries` have two. gray_range belongs to the opening of images, before any transform.
    on_masks: whether the transform is a Jointly, which also acts on masks.
    """
    compose = Jointly if on_masks else v2.Compose
    settings = dict(size=size, crop_pct=crop_pct, interpolation=_mode(interpolation))
    steps = []
    for entry in entries if entries is not None else [dict(type='EvaluationCrop')]:
        given = dict(entry)
        if 'interpolation' in given:
            given['interpolation'] = _mode(given['interpolation'])
        if isinstance(given.get('dtype'), str):
            given['dtype'] = _dtype(given['dtype'])
        if on_masks and 'fill' in given:
            given['fill'] = {tv_tensors.Mask: 0, 'others': given['fill']}
        step = TRANSFORMS.build(given, **settings)
        steps += [v2.ToImage(), step] if isinstance(step, v2.Normalize) else [step]
    for step in steps:
        _refuse_normalize_within(step)
    number = sum(isinstance(inner, v2.Normalize) for step in steps for inner in steps_of(step))
    if number > 1:
        raise UserError(
            f'a transform has {number} steps of type Normalize; an image is normalised once. Leave them out: '
            'the images are then normalised as the backbone needs it.'
        )
    return compose(steps if number else [*steps, v2.ToImage(), Normalisation(mean, std)])


def _refuse_normalize_within(step: Callable) -> None:
    """UserError for a Normalize in a list of transforms that are applied at random.

    Some images would then be normalised twice, and others once.
    """
    for container in steps_of(step):
        inner = list(getattr(container, 'transforms', None) or ())
        if any(isinstance(each, v2.Normalize | Normalize) for one in inner for each in steps_of(one)):
            raise UserError(
                f'a transform has a Normalize within {type(container).__name__}; an image is normalised '
                'once. Leave it out: the images are then normalised as the backbone needs it.'
            )
        for one in inner:
            _refuse_normalize_within(one)


def normalisation(transform: Callable) -> tuple[list[float], list[float]]:
    """The mean and std that a transform of `build_transform` uses."""
    step = next(step for step in steps_of(transform) if isinstance(step, v2.Normalize))
    return list(step.mean), list(step.std)


def refuse_unless_pixels(image: torch.Tensor) -> None:
    """UserError for a tensor that is no image.

    An image is (1, H, W) or (3, H, W), of uint8, or of floats in 0..1 that are not normalised.
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
    """Splits a transform in two: the steps at its start that are STILL, as a list, and the rest."""
    steps = steps_of(transform)
    number = next((i for i, step in enumerate(steps) if type(step) not in STILL), len(steps))
    return steps[:number], v2.Compose(steps[number:]) if number else transform


def on_tensors(transform: Callable) -> Callable:
    """The same transform, except that after the STILL steps it works on a uint8 tensor (3, H, W).

    The tensor has channels last in memory, and stands in place of a PIL image. Random draws are the same.
    Resized pixels differ by rounding. Rotated images also differ at the edges.
    """
    still, rest = split_still(transform)
    kind = Jointly if isinstance(transform, Jointly) else v2.Compose
    return kind([*still, v2.PILToTensor(), rest])  # PILToTensor does not change a tensor


def begins_as_tensor(transform: Callable) -> bool:
    """Whether the first step makes a tensor of the image."""
    return type(steps_of(transform)[0]) is v2.PILToTensor


def split_at_tensor(transform: Callable) -> tuple[Callable, Callable]:
    """Splits a transform of `on_tensors` in two: the steps up to the tensor, and the rest."""
    steps = steps_of(transform)
    number = next(i for i, step in enumerate(steps, 1) if type(step) is v2.PILToTensor)
    return v2.Compose(steps[:number]), v2.Compose(steps[number:])


def split_normalisation(transform: Callable) -> tuple[Callable, Callable]:
    """Splits a transform in two: the steps before its final normalisation, and the normalisation."""
    steps = steps_of(transform)
    if len(steps) < 2 or type(steps[-1]) is not Normalisation:
        return transform, v2.Identity()
    kind = Jointly if isinstance(transform, Jointly) else v2.Compose
    return kind(steps[:-1]), steps[-1]


def steps_of(transform: Callable) -> list[object]:
    """All steps of a Compose in order. The steps of each Compose within a Compose are listed too."""
    if not isinstance(transform, v2.Compose) or type(transform).forward is not v2.Compose.forward:
        return [transform]
    return [step for inner in transform.transforms for step in steps_of(inner)]


def _resampling(mode: object) -> Image.Resampling:
    return Image.Resampling[v2.InterpolationMode(mode).name.removesuffix('_EXACT')]


def _mode(name: object) -> v2.InterpolationMode:
    try:
        return v2.InterpolationMode(name)
    except ValueError:
        raise UnknownNameError('interpolation', name, [mode.value for mode in v2.InterpolationMode]) from None


def _dtype(name: str) -> torch.dtype:
    """The torch dtype of a name: 'float32' or 'torch.float32'. A config holds texts."""
    dtypes = {key: value for key, value in vars(torch).items() if isinstance(value, torch.dtype)}
    if name.removeprefix('torch.') not in dtypes:
        raise UnknownNameError('dtype', name, dtypes)
    return dtypes[name.removeprefix('torch.')]


def _values(images: torch.Tensor) -> str:
    return f'values from {images.min():.3g} to {images.max():.3g}'
