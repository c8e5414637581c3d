"""The paths of a network that are nearest to a path, with wildcards, that fits none of them."""

import difflib
import re
from collections.abc import Iterable

NUMBER = re.compile(r'(?<![^.])\d+(?![^.])')  # a part of a path that is a number
CUTOFF = 0.5  # of difflib's likeness


def near_paths(pattern: str, names: Iterable[str], further: Iterable[str] = (), most: int = 3) -> list[str]:
    """At most `most` patterns that look like `pattern`, the nearest first. Each fits one of `names`.

    '*.qvk' gives '*.qkv', 'hed.*' gives 'head.*', 'blocks.*.atn' gives 'blocks.*.attn'.
    further: names without wildcards that are allowed too, such as roles.
    """
    start = '*.' if pattern.startswith('*.') else ''
    end = '.*' if pattern.endswith('.*') else ''
    middle = pattern[len(start) : len(pattern) - len(end)] or pattern
    choices = [name for name in names if name]
    if end:
        choices = [parent for name in choices for parent in _parents(name)]
    if '*' in middle:
        choices = [NUMBER.sub('*', name) for name in choices]
    if start:
        parts = middle.count('.') + 1
        choices = ['.'.join(name.split('.')[-parts:]) for name in choices]
    if not start + end:
        choices += further
    found = difflib.get_close_matches(middle, dict.fromkeys(choices), n=most, cutoff=CUTOFF)
    return [f'{start}{name}{end}' for name in found]


def _parents(name: str) -> list[str]:
    parts = name.split('.')
    return ['.'.join(parts[:count]) for count in range(1, len(parts))]
