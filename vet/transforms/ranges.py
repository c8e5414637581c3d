"""The allowed values of the arguments of torchvision's transforms.

torchvision's signatures say types, but no ranges.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Interval, Len, MinLen, Predicate

from vet.allowed import Share


def is_ascending(pair: Sequence[float]) -> bool:
    """in ascending order"""
    return pair[0] <= pair[1]


Pixels = Annotated[int, Interval(ge=1, le=16_384)]
Border = Annotated[int, Interval(ge=0, le=4096)]
Above = Annotated[float, Interval(gt=0, le=1000)]
Factor = Annotated[float, Interval(ge=0, le=100)]
Angle = Annotated[float, Interval(ge=-360, le=360)]
Quality = Annotated[int, Interval(ge=1, le=100)]
Pair = Annotated[tuple[Above, Above], Predicate(is_ascending)]
Jitter = Factor | Annotated[tuple[Factor, Factor], Predicate(is_ascending)] | None
Hue = Annotated[float, Interval(ge=-0.5, le=0.5)]

RANGES: dict[str, Any] = dict(
    alpha=Above | list[Above],
    antialias=bool | None,
    bits=Annotated[int, Interval(ge=0, le=8)],
    brightness=Jitter,
    contrast=Jitter,
    degrees=Annotated[float, Interval(ge=0, le=360)]
    | Annotated[tuple[Angle, Angle], Predicate(is_ascending)],
    distortion_scale=Share,
    hue=Annotated[float, Interval(ge=0, le=0.5)] | Annotated[tuple[Hue, Hue], Predicate(is_ascending)] | None,
    inplace=bool,
    kernel_size=Pixels | Annotated[list[Pixels], Len(1, 2)],
    magnitude=Annotated[int, Interval(ge=0, le=30)],
    max_size=Pixels | None,
    num_magnitude_bins=Annotated[int, Interval(ge=31, le=1000)],  # more than the magnitude, which counts them
    num_ops=Annotated[int, Interval(ge=0, le=100)],
    p=Share | Annotated[list[Share], MinLen(1)],
    padding=Border | Annotated[list[Border], Len(1, 4)] | None,
    quality=Quality | Annotated[tuple[Quality, Quality], Predicate(is_ascending)],
    ratio=Pair,
    saturation=Jitter,
    scale=Pair | bool | None,  # ToDtype takes a bool
    severity=Annotated[int, Interval(ge=1, le=10)],
    sharpness_factor=Factor,
    shear=Angle | Annotated[list[Angle], Len(2, 4)] | None,
    sigma=Above | Pair | list[Above],
    size=Pixels | Annotated[list[Pixels], Len(1, 2)] | None,
    transforms=Annotated[list[Callable], MinLen(1)],
    translate=tuple[Share, Share] | None,
    value=float | list[float] | Literal['random'] | None,  # torchvision's signature allows only a number
)
