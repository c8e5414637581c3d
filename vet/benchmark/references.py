"""References: published accuracies, with their source and how they were obtained.

The data are in references.yaml.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from vet.errors import DataError, UnknownNameError

FILE = Path(__file__).with_name('references.yaml')


@dataclass(frozen=True)
class Reference:
    """One published number. 'not stated': no source says the checkpoint, recipe or split."""

    # the name in suites; vtab_mean19, vtab_mean3: VTAB-1k's means over tasks and groups; cards_mean6
    dataset: str
    checkpoint: str  # timm's name with its tag, 'vit_base_patch16_224.orig_in21k'
    method: str  # the tuner's name in suites
    value: float  # top-1, percent
    source: str  # paper with its arXiv number, or model card
    recipe: str  # of configs/_base_/recipes, or 'not published'
    split: str  # trained on / tested on
    note: str = ''


def find(dataset: str, checkpoint: str, method: str) -> list[Reference]:
    """The published numbers of the method on this dataset and exactly this checkpoint, in the file's
    order.
    """
    return [
        entry
        for entry in references()
        if (entry.dataset, entry.checkpoint, entry.method) == (dataset, checkpoint, method)
    ]


@cache
def references(path: Path = FILE) -> tuple[Reference, ...]:
    """All entries of a file. DataError or UnknownNameError names the entry and what is wrong with it."""
    try:
        content = yaml.safe_load(path.read_text())
        entries = content['references']
        if not isinstance(entries, list):
            raise TypeError(f'references is {entries!r}')
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise DataError(
            f'the references {str(path)!r} cannot be read: {error!r}. It is YAML with a list `references`.'
        ) from error
    by_key: dict[tuple[str, ...], Reference] = {}
    for place, entry in enumerate(entries, 1):
        reference = _read(entry, f'entry {place} of {str(path)!r}')
        key = reference.dataset, reference.checkpoint, reference.method, reference.source
        if key in by_key:
            raise DataError(f'entry {place} of {str(path)!r} repeats {", ".join(key)}; keep one of them.')
        by_key[key] = reference
    return tuple(by_key.values())


def _read(entry: object, where: str) -> Reference:
    fields = {field.name: field for field in dataclasses.fields(Reference)}
    if not isinstance(entry, Mapping):
        raise DataError(f'{where} is {entry!r}; it must be a mapping with {", ".join(fields)}.')
    for key in entry:
        if key not in fields:
            raise UnknownNameError(f'key in {where}', key, fields)
    values = {
        name: field.default for name, field in fields.items() if field.default is not dataclasses.MISSING
    } | dict(entry)
    for name in fields:
        value = values.get(name)
        is_share = isinstance(value, int | float) and type(value) is not bool and 0 < value <= 100
        if name == 'value' and not is_share:
            raise DataError(
                f'{where} has the value {value!r}; it must be a number above 0 and up to 100, in percent.'
            )
        if name != 'value' and not isinstance(value, str):
            raise DataError(f'{where} has {name} {value!r}; it must be a text.')
    return Reference(**values)
