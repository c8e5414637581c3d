"""The preprocessing that a network needs: each setting with its range, for configs and for model folders."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, get_type_hints

from annotated_types import Interval, Predicate

from vet.allowed import Crop, Interpolation, Mean, Std, choices, describe, fits, must_be
from vet.errors import UnknownNameError, UserError, shown

Pixels = Annotated[int, Interval(ge=1, le=2048)]
Level = Annotated[float, Interval(ge=-1e12, le=1e12)]


def is_rising(pair: Sequence[float]) -> bool:
    """in rising order"""
    return pair[0] < pair[1]


def is_for_channels(values: Sequence[float]) -> bool:
    """of one or three values"""
    return len(values) in (1, 3)


@dataclass(frozen=True)
class Preprocessing:
    """The images that a network takes: RGB in [0, 1], normalised by mean and std. Evaluation crops the
    centre.

    size: (H, W) in pixels; a config may give one number for both.
    mean, std: of each channel.
    crop_pct: the crop's share of the short side after resizing. Above 1, the image is smaller than the crop.
    interpolation: how images are resized.
    gray_range: the levels that become black and white in gray images of more than 8 bits, such as (0, 4095)
        for 12 bits. None: 0 and 65,535.
    """

    size: tuple[Pixels, Pixels] = (224, 224)
    mean: Annotated[tuple[Mean, ...], Predicate(is_for_channels)] = (0.485, 0.456, 0.406)
    std: Annotated[tuple[Std, ...], Predicate(is_for_channels)] = (0.229, 0.224, 0.225)
    crop_pct: Crop = 0.875
    interpolation: Interpolation = 'bicubic'
    gray_range: Annotated[tuple[Level, Level], Predicate(is_rising)] | None = None

    def with_changes(self, changes: Mapping[str, object]) -> 'Preprocessing':
        """A copy with `changes`. UserError for an unknown name, or a value out of range."""
        unknown = set(changes) - set(HINTS)
        if unknown:
            raise UserError(
                f'unknown preprocessing settings {sorted(map(str, unknown))}; allowed: {", ".join(HINTS)}.'
            )
        for name, value in changes.items():
            if not fits(value, HINTS[name]):
                raise _refused(name, value)
        values = asdict(self) | {
            name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()
        }
        if isinstance(values['size'], int):
            values['size'] = (values['size'], values['size'])
        return Preprocessing(**values)


HINTS = get_type_hints(Preprocessing, include_extras=True)
HINTS['size'] = Pixels | HINTS['size']  # one number for both


def allows(given: object) -> bool:
    """Whether `given` is a dict of some of the settings, each in its range."""
    return isinstance(given, Mapping) and all(
        name in HINTS and fits(value, HINTS[name]) for name, value in given.items()
    )


def allowed_text() -> str:
    """The settings and their ranges, for a message."""
    return 'a dict of ' + '; '.join(f'{name}: {describe(hint)}' for name, hint in HINTS.items())


def _refused(name: str, value: object) -> UserError:
    if isinstance(value, str) and (names := choices(HINTS[name])):
        return UnknownNameError(f'preprocessing.{name}', value, names)
    return UserError(f'preprocessing.{name} is {shown(value)}; it must be {must_be(value, HINTS[name])}.')
