"""An example as a model folder writes it: shapes and types, without numbers. So `vet.load` needs no example.

hub/network_folder.py reads the example by the rule EXAMPLE.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from vet.core.example import Example
from vet.core.permits import ENTRIES, SETTING, Rule

KINDS = 'float32 float64 float16 bfloat16 bool uint8 int8 int16 int32 int64'.split()
# 'float32 [1, 3, 32, 32]'. 'int64 [1, 2] of 7' is a tensor each of whose numbers is 7
TENSOR = re.compile(
    rf'(?P<kind>{"|".join(KINDS)}) \[(?P<shape>\d{{1,9}}(, \d{{1,9}}){{0,7}})\]( of (?P<fill>-?\d{{1,9}}))?'
)
TUPLE = '()'  # the first entry of a list that was a tuple, such as a tuple of tensors in one argument
NUMBERS = 3 * 2048**2  # in all tensors of an example, as in the largest image of a folder


def written(example: Example) -> dict[str, Any] | None:
    """The example for configuration.json. None: the example has a part that a folder may not say."""
    value = dict(args=_written(list(example.args)), kwargs=_written(dict(example.kwargs)))
    return value if EXAMPLE.allows(value) else None


def example_of(value: Mapping[str, object]) -> Example:
    """The example that EXAMPLE allows. Its floating point numbers are zeros."""
    return Example(tuple(_read(value['args'])), _read(value['kwargs']))


def _written(value: object) -> Any:
    if isinstance(value, torch.Tensor):
        text = f'{str(value.dtype).removeprefix("torch.")} {list(value.shape)}'
        first = 0 if value.is_floating_point() or not value.numel() else int(value.flatten()[0])
        return f'{text} of {first}' if first else text
    if isinstance(value, dict):
        return {key: _written(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [TUPLE, *map(_written, value)]
    return list(map(_written, value)) if isinstance(value, list) else value


def _read(value: object) -> Any:
    if isinstance(value, str) and (tensor := TENSOR.fullmatch(value)):
        kind = getattr(torch, tensor['kind'])
        return torch.full(_shape(tensor), int(tensor['fill'] or 0), dtype=kind)
    if isinstance(value, dict):
        return {key: _read(inner) for key, inner in value.items()}
    if isinstance(value, list) and value[:1] == [TUPLE]:
        return tuple(map(_read, value[1:]))
    return list(map(_read, value)) if isinstance(value, list) else value


def _shape(tensor: re.Match[str]) -> list[int]:
    return list(map(int, tensor['shape'].split(', ')))


def _allows(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != {'args', 'kwargs'}:
        return False
    if not isinstance(value['args'], list) or not isinstance(value['kwargs'], dict):
        return False
    leaves = list(_leaves(value))
    numbers = 0
    for leaf in leaves:
        tensor = TENSOR.fullmatch(leaf) if isinstance(leaf, str) else None
        if tensor:
            numbers += math.prod(_shape(tensor))
        elif leaf != TUPLE and not SETTING.allows(leaf):
            return False
    return 0 < numbers <= NUMBERS and len(leaves) <= ENTRIES


def _leaves(value: object) -> Iterator[object]:
    """The values in lists and dicts. The keys of dicts must be names, and count as values."""
    if isinstance(value, dict):
        yield from (key if isinstance(key, str) and key.isidentifier() else b'' for key in value)
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


EXAMPLE = Rule(
    _allows,
    f'a dict of args and kwargs, of tensors such as "float32 [1, 3, 32, 32]", of {NUMBERS:,} numbers '
    'at most, and of plain settings',
)
