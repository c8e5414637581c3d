"""The values that a model folder, which may come from a stranger, may give to a plugin.

vet checks the values before vet builds anything. A plugin of a registry declares a rule for each argument
with `@permits(…)`. A plugin without rules gets plain settings: no path, no URL.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from vet.core import preprocessing
from vet.errors import DataError, UserError, shown
from vet.patterns import require_pattern

Plugin = TypeVar('Plugin', bound=Callable)
LARGEST = 1_000_000  # the largest number in a folder; no size, depth or rank of a network is larger
ENTRIES = 1_000  # in a list or dict of an entry
VALUES = 1_000_000  # of an entry, in all lists and dicts together
DEPTH = 32  # of lists and dicts within one another
LENGTH = 1_000  # of a text of an entry
MOST = dict(tuners=64, tasks=256, transforms=16)


@dataclass(frozen=True)
class Rule:
    """Which values are allowed, and words for them."""

    allows: Callable[[Any], bool]
    text: str

    def __or__(self, other: 'Rule') -> 'Rule':
        return Rule(lambda value: self.allows(value) or other.allows(value), f'{self.text}, or {other.text}')


def whole(least: int, most: int) -> Rule:
    """A whole number from `least` to `most`."""
    return Rule(
        lambda value: type(value) is int and least <= value <= most, f'a whole number from {least} to {most}'
    )


def number(least: float, most: float) -> Rule:
    """A finite number from `least` to `most`."""
    return Rule(
        lambda value: type(value) in (int, float) and least <= value <= most,
        f'a number from {least:g} to {most:g}',
    )


def text(pattern: str, what: str) -> Rule:
    """A text that `pattern` matches whole."""
    known = re.compile(pattern)
    return Rule(
        lambda value: isinstance(value, str) and len(value) <= LENGTH and known.fullmatch(value) is not None,
        what,
    )


def lists(rule: Rule, least: int = 0, most: int = ENTRIES) -> Rule:
    """A list of `least` to `most` values that `rule` allows."""
    return Rule(
        lambda value: (
            isinstance(value, list | tuple) and least <= len(value) <= most and all(map(rule.allows, value))
        ),
        f'a list of {least} to {most} values, each {rule.text}',
    )


def dicts(rules: Mapping[str, Rule], what: str) -> Rule:
    """A dict of some of these keys."""
    return Rule(
        lambda value: (
            isinstance(value, Mapping)
            and all(key in rules and rules[key].allows(value[key]) for key in value)
        ),
        what,
    )


def _is_pattern(value: object) -> bool:
    try:
        require_pattern(value, '')
    except UserError:
        return False
    return True


def _is_checkpoint(value: object) -> bool:
    return (
        isinstance(value, str)
        and len(value) <= LENGTH
        and os.path.isabs(value)
        and '..' not in re.split(r'[/\\]', value)
        and (not value.startswith(('//', '\\\\')) and '://' not in value and value.isprintable())
    )


NOTHING = Rule(lambda value: value is None, 'null')
FLAG = Rule(lambda value: type(value) is bool, 'true or false')
NUMBER = number(-LARGEST, LARGEST)
WORD = text(r'[\w.+-]*', 'a word of letters, digits, "_", ".", "+" and "-"')
SETTING = (
    NOTHING
    | FLAG
    | whole(-1, 30_000)
    | Rule(lambda value: type(value) is float and NUMBER.allows(value), 'a number')
    | WORD
)
SETTINGS = SETTING | lists(SETTING | lists(SETTING))
TOKENS = NOTHING | whole(0, 1024)  # added to an image's; a published network has 9 at most
SHA256 = text('[0-9a-f]{64}', 'a sha256 of 64 hexadecimal digits')
CHECKPOINT = NOTHING | Rule(
    _is_checkpoint, 'the absolute path of a file on this machine, as a training run writes it'
)
PATTERN = Rule(_is_pattern, "a pattern of RE2's syntax")
ROLES = Rule(
    lambda value: (
        isinstance(value, Mapping)
        and len(value) <= ENTRIES
        and all(WORD.allows(role) and _is_pattern(pattern) for role, pattern in value.items())
    ),
    'a dict of roles, each with a pattern',
)
PREPROCESSING = Rule(preprocessing.allows, preprocessing.allowed_text())


def permits(**rules: Rule) -> Callable[[Plugin], Plugin]:
    """Declares which arguments a model folder may give to a plugin, with a rule for each.

    Others are refused.
    """

    def declared(plugin: Plugin) -> Plugin:
        setattr(plugin, 'permits', rules)  # noqa: B010 - a function declares no attributes
        return plugin

    return declared


def require_type(entry: object, where: str) -> str:
    """The type of an entry dict(type=…). DataError if the entry has no type."""
    if (
        not isinstance(entry, Mapping)
        or not isinstance(entry.get('type'), str)
        or not WORD.allows(entry['type'])
    ):
        raise DataError(f'{where} is {shown(entry)}; allowed: a dict with a "type", the name of a plugin.')
    return entry['type']


def require_permitted(entry: Mapping[str, object], where: str, rules: Mapping[str, Rule]) -> None:
    """DataError if an entry dict(type=…) of a folder has a value that `rules` do not allow."""
    for key, value in entry.items():
        if key not in rules:
            raise DataError(
                f'{where} says {shown(key)}, which a model folder may not say. Allowed: {", ".join(rules)}.'
            )
        if not rules[key].allows(value):
            settings = [{name: inner} for name, inner in value.items()] if isinstance(value, Mapping) else []
            given = next((setting for setting in settings if not rules[key].allows(setting)), value)
            raise DataError(
                f'{where}.{key} is {shown(given)}, which a model folder may not say. Allowed: '
                f'{rules[key].text}.'
            )


def require_plain_settings(value: object, where: str) -> None:
    """DataError for a value beyond the limits of a folder, and for a path or a URL."""
    for place, inner in walk(value, where):
        if isinstance(inner, str) and (len(inner) > LENGTH or '://' in inner or '/' in inner):
            raise DataError(
                f'{place} is {shown(inner)}; a model folder may say no path and no URL there, and no text of '
                f'more than {LENGTH:,} characters.'
            )
        if isinstance(inner, int | float) and not (
            abs(inner) <= LARGEST or (place.endswith('seed') and type(inner) is int)
        ):
            raise DataError(f'{place} is {shown(inner)}; allowed: numbers from {-LARGEST:,} to {LARGEST:,}.')
        if isinstance(inner, Mapping | list) and len(inner) > ENTRIES:
            raise DataError(f'{place} has {len(inner):,} entries; allowed: {ENTRIES:,}.')


def walk(value: object, where: str) -> Iterator[tuple[str, Any]]:
    """Every value within `value`, with its place. The keys of dicts are values too.

    DataError if the value is nested too deep, or holds too many values: a pickle may hold one list many
    times.
    """
    waiting = [(where, value, 0)]
    left = VALUES
    while waiting:
        place, inner, depth = waiting.pop()
        left -= 1
        if left < 0:
            raise DataError(
                f'{where} holds more than {VALUES:,} values, which is more than any model folder of vet.'
            )
        yield place, inner
        if depth > DEPTH:
            raise DataError(
                f'{where} is nested deeper than {DEPTH} levels, which is deeper than any model folder of vet.'
            )
        if isinstance(inner, Mapping):
            waiting += [(f'a key of {place}', key, depth) for key in inner]
            waiting += [(f'{place}.{key}', value, depth + 1) for key, value in inner.items()]
        elif isinstance(inner, list | tuple):
            waiting += [(f'{place}[{i}]', item, depth + 1) for i, item in enumerate(inner)]
