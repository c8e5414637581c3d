"""The values that a config may hold: those of JSON."""

import copy
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from vet.errors import UserError, shown

DEPTH = 40  # levels
LONG = 100_000  # entries of a list
MANY = 500_000  # values of a section in all


def plain(value: object, where: str) -> Any:
    """A copy of a section, with values of JSON only, so that the copy can be saved with the model.

    UserError if a config cannot hold a value. The error names the value's place.
    """
    return _plain(value, where, 0, count())


def refuse_uncopied(error: TypeError) -> None:
    """UserError that names the value of a config file, if `error` says that the value cannot be copied.

    mmengine copies a config while it reads the file.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        copied = frame.f_locals.get('x') if frame.f_code is copy.deepcopy.__code__ else None
        if isinstance(copied, Mapping):
            for key, value in copied.items():
                plain(value, str(key))


def _plain(value: object, where: str, depth: int, seen: Iterator[int]) -> object:
    if depth > DEPTH:
        raise UserError(f'{where[:60]}… is nested more than {DEPTH} deep; no setting is so deep.')
    if next(seen) > MANY:
        raise UserError(f'{where[:60]}… is one of more than {MANY:,} values, which is too many for a config.')
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise UserError(f'{where} has the key {wrong[0]!r}; keys are texts.')
        return {
            _text(key, where): _plain(inner, f'{where}.{key}', depth + 1, seen)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple, range)):
        if len(value) > LONG:
            raise UserError(f'{where} has {len(value):,} values; a list in a config has at most {LONG:,}.')
        return [_plain(inner, f'{where}[{i}]', depth + 1, seen) for i, inner in enumerate(value)]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and where.startswith('train.') and re.fullmatch(r'[+-]?\d+e[+-]?\d+', value):
        return float(value)  # YAML takes 1e-3 for a text
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and not abs(value) <= sys.float_info.max
    ):
        number = value if isinstance(value, float) else 'a whole number of more than 300 digits'
        raise UserError(f'{where} is {number}; a number in a config is finite.')
    if isinstance(value, float) and 0 < abs(value) < 1e-30:
        raise UserError(f'{where} is {value}; no setting is so small. Give 0, or a larger number.')
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return _text(value, where)
    raise UserError(
        f'{where} is {shown(value)}; a config holds texts, numbers, lists and dicts, so that it can be '
        'saved. Register your object, and give its name.'
    )


def _text(text: str, where: str) -> str:
    if '\0' in text:
        raise UserError(f'{where} has the character 0 in {shown(text)}; no path and no name may have it.')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f'{where} has {shown(text)}, which is not Unicode and cannot be saved. If the text is a path, '
            'rename the file or folder.'
        ) from error
    return text
