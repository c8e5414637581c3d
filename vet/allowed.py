"""The allowed values of a setting or of a plugin's argument: a type hint, with the range in `Annotated`.

vet reads the hint from the field, or from the signature of the plugin.

    warmup_epochs: Annotated[float, Interval(ge=0)] = 0
"""

import numbers
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval, Len, MinLen, Predicate


@dataclass(frozen=True)
class OneOf:
    """In `Annotated[str, OneOf(…)]`: the allowed names, if a dict or a tuple lists the choices."""

    names: tuple[str, ...]

    def __get_pydantic_json_schema__(
        self, core: object, made_by: Callable[[object], dict[str, object]]
    ) -> dict[str, Any]:
        return made_by(core) | {'enum': list(self.names)}


@dataclass(frozen=True)
class PluginOf:
    """In `Annotated`, at a dict(type=NAME, …): the registry that builds the plugin, such as 'tuner'."""

    registry: str

    def __get_pydantic_json_schema__(
        self, core: object, made_by: Callable[[object], dict[str, object]]
    ) -> dict[str, Any]:
        """Marks the place in a JSON Schema at which `vet/config/schema.py` puts the plugins."""
        return made_by(core) | {'plugin': self.registry}


MOST = 65_536  # more ranks, channels or tokens than any layer has: a number above is a slip of the hand

Count = Annotated[int, Interval(ge=1, le=MOST)]
Images = Annotated[int, Interval(ge=1, le=10**8)]  # of a dataset: ImageNet-21k has 14 million
Classes = Annotated[int, Interval(ge=1, le=10**7)]  # of a head
CountOrNone = Annotated[int, Interval(ge=0, le=MOST)]  # of a block: 0 skips it
# also by depth or pattern
Counts = Count | Annotated[list[CountOrNone], MinLen(1)] | Annotated[dict[str, CountOrNone], MinLen(1)]
Positive = Annotated[float, Interval(gt=0, le=1e6)]
Positives = Positive | Annotated[list[Positive], MinLen(1)] | Annotated[dict[str, Positive], MinLen(1)]
Rate = Annotated[float, Interval(ge=1e-12, le=1000)]  # a learning rate
Share = Annotated[float, Interval(ge=0, le=1)]
Dropout = Annotated[float, Interval(ge=0, lt=1)]
Gamma = Annotated[float, Interval(ge=0, le=20)]  # the power of a focal loss
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]  # NumPy takes no larger seed
Text = Annotated[str, MinLen(1)]
Mean = Annotated[float, Interval(ge=-1, le=2)]  # of the pixels of a channel, in images of 0..1
Std = Annotated[float, Interval(ge=0.001, le=10)]
# the crop's share of the resized image; volo_d5_512 has 1.15
Crop = Annotated[float, Interval(ge=0.05, le=1.5)]
INTERPOLATIONS = ('nearest', 'nearest-exact', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')
Interpolation = Annotated[str, OneOf(INTERPOLATIONS)]
Places = Text | Annotated[Sequence[Text], MinLen(1)]  # of a tuner: `at`

ANYTHING = (Any, object)  # hints that every value fits
NAMES = {
    int: 'a whole number',
    float: 'a number',
    numbers.Number: 'a number',
    str: 'a text',
    bool: 'True or False',
    type(None): 'None',
    Path: 'a path',
    list: 'a list',
    tuple: 'a list',
    dict: 'a dict',
}


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` has the hint's type, and is in the hint's range.

    A bool is no number. NaN and infinity fit no hint of a number.
    """
    origin = typing.get_origin(hint)
    inner = typing.get_args(hint)
    if hint in ANYTHING:
        return True
    if origin is Annotated:
        return fits(value, inner[0]) and all(_holds(value, limit) for limit in inner[1:])
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in inner)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in inner)
    if _is_a(origin or hint, Mapping):
        return isinstance(value, Mapping) and all(
            _all_fit(values, inner[i : i + 1]) for i, values in enumerate((value, value.values()))
        )
    if _is_a(origin or hint, Sequence) and hint is not str:
        is_list = isinstance(value, (list, tuple))
        if origin is tuple and inner and inner[-1] is not Ellipsis:
            return is_list and len(value) == len(inner) and all(map(fits, value, inner))
        return is_list and _all_fit(value, inner[:1])
    if hint in (int, float, numbers.Number):
        is_number = isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
        return is_number and abs(value) <= sys.float_info.max
    if hint is None or hint is type(None):
        return value is None
    if isinstance(hint, type) and issubclass(hint, os.PathLike):
        return isinstance(value, (str, os.PathLike)) and '\0' not in str(value)
    if origin is Callable:
        return callable(value)
    return not isinstance(hint, type) or isinstance(value, hint)  # if the hint is no type, any value fits


def _all_fit(values: Any, hint: tuple[Any, ...]) -> bool:
    return not hint or all(fits(value, hint[0]) for value in values)


def _is_a(kind: object, base: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, base) and kind is not str


def _holds(value: Any, limit: Any) -> bool:
    if isinstance(limit, Len):
        return limit.min_length <= len(value) <= (limit.max_length or sys.maxsize)
    if isinstance(limit, MinLen):
        return len(value) >= limit.min_length
    if isinstance(limit, Predicate):
        return bool(limit.func(value))
    if isinstance(limit, OneOf):
        return value in limit.names
    if isinstance(limit, Interval):
        return (
            (limit.ge is None or value >= limit.ge)
            and (limit.gt is None or value > limit.gt)
            and (limit.le is None or value <= limit.le)
            and (limit.lt is None or value < limit.lt)
        )
    return True


def without_ranges(hint: object) -> Any:
    """The hint without ranges. The names that a text may be stay."""
    origin = typing.get_origin(hint)
    inner = typing.get_args(hint)
    if origin is Annotated:
        has_names = any(isinstance(limit, OneOf | PluginOf) for limit in inner)
        return hint if has_names else without_ranges(inner[0])
    if origin in (typing.Union, types.UnionType):
        kinds = tuple(without_ranges(option) for option in inner)
        return typing.Union[kinds]  # noqa: UP007, of a computed tuple
    if origin in (list, Sequence) and inner:
        return list[without_ranges(inner[0])]  # type: ignore[misc]  # a computed hint
    if origin in (dict, Mapping) and len(inner) == 2:
        return dict[inner[0], without_ranges(inner[1])]  # type: ignore[misc, valid-type]  # computed
    return hint


def choices(hint: object) -> list[str]:
    """The texts that a hint lists. Empty if the hint allows more than these texts, True, False and None."""
    if typing.get_origin(hint) is Annotated:
        return next((list(limit.names) for limit in typing.get_args(hint) if isinstance(limit, OneOf)), [])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option not in (bool, type(None))]
        return choices(options[0]) if len(options) == 1 else []
    return (
        [option for option in typing.get_args(hint) if isinstance(option, str)]
        if typing.get_origin(hint) is Literal
        else []
    )


def must_be(value: Any, hint: object) -> str:
    """The end of a message about a value that does not fit: '… must be …'.

    If the type is right, the text has only the range. For a list or a dict, the text also has the wrong
    entry.
    """
    origin = typing.get_origin(hint)
    inner = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        near = next((option for option in inner if fits(value, without_ranges(option))), None)
        near = near or next((option for option in inner if _is_of_many(value, option)), None)
        return describe(without_ranges(hint)) if near is None else must_be(value, near)
    if _is_of_many(value, hint):
        entry = _of_entries(hint)
        values = value.values() if isinstance(value, Mapping) else value
        if wrong := [item for item in values if not fits(item, entry)]:
            kind = NAMES.get(type(value), 'a list')
            return f'{kind} whose values are {describe(entry)}, but {wrong[0]!r} is not'
    return fits(value, without_ranges(hint)) and _range(hint) or describe(hint)


def _is_of_many(value: object, hint: object) -> bool:
    """Whether value and hint are both lists of any length, or both dicts, whose values the hint describes."""
    kind = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    origin = typing.get_origin(kind)
    if isinstance(value, Mapping):
        return _is_a(origin, Mapping)
    if not isinstance(value, (list, tuple)) or not _is_a(origin, Sequence):
        return False
    return origin is not tuple or typing.get_args(kind)[-1] is Ellipsis


def _of_entries(hint: object) -> object:
    kind = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    entries = typing.get_args(kind)
    return entries[0] if entries[-1] is Ellipsis else entries[-1]


def options(hint: object) -> list[str]:
    """Each kind of value that a hint allows, in words."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return list(dict.fromkeys(map(describe, typing.get_args(hint))))
    return [describe(hint)]


def describe(hint: Any) -> str:
    """The hint in words."""
    origin = typing.get_origin(hint)
    inner = typing.get_args(hint)
    if hint in ANYTHING:
        return 'anything'
    if origin is Annotated:
        if names := choices(hint):
            return ' or '.join(map(repr, names))
        if registry := next((limit.registry for limit in inner if isinstance(limit, PluginOf)), ''):
            return f'a dict with a "type" of those that `vet list {plural(registry)}` shows'
        limits = ' and '.join(filter(None, map(_limit, inner[1:])))
        if any(isinstance(limit, Len) for limit in inner):
            return describe(inner[0]).replace('a list', f'a list {limits}', 1)
        if any(isinstance(limit, Predicate) for limit in inner):
            return f'{describe(inner[0])}, {limits}'
        return f'{describe(inner[0])} {limits}' if limits and inner[0] in (int, float) else describe(inner[0])
    if origin in (typing.Union, types.UnionType):
        return ' or '.join(options(hint))
    if origin is Literal:
        return ' or '.join(map(repr, inner))
    if origin is Callable:
        return 'a function'
    if _is_a(origin or hint, Mapping):
        has_values = len(inner) > 1 and inner[1] not in ANYTHING
        return f'a dict whose values are {describe(inner[1])}' if has_values else 'a dict'
    if _is_a(origin or hint, Sequence):
        if origin is tuple and inner and inner[-1] is not Ellipsis:
            return f'a list of {len(inner)} values: {", ".join(map(describe, inner))}'
        return (
            f'a list, each value of which is {describe(inner[0])}'
            if inner and inner[0] not in ANYTHING
            else 'a list'
        )
    return NAMES.get(hint) or str(getattr(hint, '__name__', hint))


def plural(name: str) -> str:
    """The plural of a registry's name, which `vet list` takes: 'tuners', 'losses'."""
    return f'{name}es' if name.endswith('s') else f'{name}s'


def _range(hint: object) -> str:
    origin = typing.get_origin(hint)
    inner = typing.get_args(hint)
    if origin is Annotated:
        return ' and '.join(filter(None, map(_limit, inner[1:])))
    if origin in (typing.Union, types.UnionType):
        return next(filter(None, map(_range, inner)), '')
    return ''


def _limit(limit: object) -> str:
    if isinstance(limit, Len):
        return f'of {limit.min_length} to {limit.max_length} values'
    if isinstance(limit, MinLen):
        return 'not empty'
    if isinstance(limit, Predicate):
        return (limit.func.__doc__ or limit.func.__name__).rstrip('.')
    if not isinstance(limit, Interval):
        return ''
    bounds = []
    if limit.ge is not None:
        bounds.append(f'at least {_plain(limit.ge)}')
    elif limit.gt is not None:
        bounds.append(f'above {_plain(limit.gt)}')
    if limit.le is not None:
        bounds.append(f'at most {_plain(limit.le)}')
    elif limit.lt is not None:
        bounds.append(f'below {_plain(limit.lt)}')
    return ' and '.join(bounds)


def _plain(number: object) -> str:
    return f'{number:,}' if isinstance(number, int) else f'{number:g}'
