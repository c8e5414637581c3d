"""Patterns for names: regular expressions in RE2's syntax. They take linear time, whoever wrote them.

Python's `re` may never end: '((.+)+)+X' and a name of thirty letters are an example. RE2 has no look-ahead,
no look-behind and no back-references.
"""

from functools import lru_cache
from typing import Any

import re2

from vet.errors import UserError

NOTHING = r'[^\s\S]'  # fits no name
LENGTH = 100_000  # of a pattern; a pattern of PEFT may name every module of a network


def require_pattern(pattern: object, where: str) -> None:
    """UserError if `pattern` is no regular expression of RE2's syntax."""
    try:
        checked(pattern)
    except UserError as error:
        raise UserError(f'{where} is {error}') from error


def checked(pattern: object) -> str:
    """The pattern.

    UserError if `pattern` is no regular expression. The error does not name the pattern's place.
    """
    if not isinstance(pattern, str) or len(pattern) > LENGTH:
        raise UserError(f'{str(pattern)[:100]!r}, not a regular expression of at most {LENGTH:,} characters.')
    _compiled(pattern)
    return pattern


def fits(pattern: str, name: str) -> bool:
    """Whether the pattern fits the whole name."""
    return _compiled(pattern).fullmatch(name) is not None


def fits_start(pattern: str, name: str) -> bool:
    """Whether the pattern fits the beginning of the name."""
    return _compiled(pattern).match(name) is not None


def occurs(pattern: str, name: str) -> bool:
    """Whether the pattern fits a part of the name."""
    return _compiled(pattern).search(name) is not None


def part_of(pattern: str, name: str) -> str | None:
    """The text that the first group (…) of the pattern fits, or the whole pattern. None: no part fits."""
    found = _compiled(pattern).search(name)
    if found is None:
        return None
    return found.group(1 if found.re.groups else 0)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeError) as error:
        said = error.args[0] if error.args and isinstance(error, re2.error) else b'it is no Unicode'
        raise UserError(
            f'{pattern[:100]!r}, not a regular expression: {said.decode(errors="replace")}. Patterns have '
            f"RE2's syntax, without look-ahead, look-behind and back-references. '.*' stands for anything."
        ) from error
