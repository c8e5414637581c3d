"""Reads datasets that wrap others: Subset, random_split, ConcatDataset, and rows of the package `datasets`.

Class names, targets, the objective and transforms are those of the wrapped datasets.
"""

import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from vet.datasets.base import given_targets
from vet.datasets.class_names import class_list
from vet.errors import UserError, shown

RENAME = '`rows.rename_column(OLD, NEW)` renames a column'


class Selected(Subset):
    """A Subset with the class names, and with the items' targets if the wrapped dataset has `targets`."""

    def __init__(self, subset: Subset):
        inner: Any = given_images(subset.dataset, 'a Subset')
        super().__init__(inner, [_place(index, len(inner)) for index in subset.indices])
        self.classes = class_list(inner.classes)
        self.objective = getattr(inner, 'objective', None)
        self.label_map = getattr(inner, 'label_map', None)
        targets = given_targets(inner)
        if targets is not None:
            self.targets = [targets[index] for index in self.indices]


class Joined(ConcatDataset):
    """A ConcatDataset with the class names and the objective, in which all parts agree, and with the targets
    of all items.

    UserError if two parts have other classes or another objective.
    """

    def __init__(self, joined: ConcatDataset):
        super().__init__([given_images(dataset, 'a ConcatDataset') for dataset in joined.datasets])
        parts: Any = self.datasets
        names = [class_list(dataset.classes) for dataset in parts]
        objectives = [getattr(dataset, 'objective', None) for dataset in parts]
        self.classes, self.objective = names[0], objectives[0]
        for number, others in enumerate(names):
            if others != names[0]:
                raise UserError(_difference(parts, number, names[0], others))
            if objectives[number] != objectives[0]:
                raise UserError(
                    f'the parts of a ConcatDataset differ in their `objective`: {objectives[0]!r} in part 0 '
                    f'({type(parts[0]).__name__}), and {objectives[number]!r} in part {number} '
                    f'({type(parts[number]).__name__}). Give parts with equal `objective`.'
                )
        targets = [given_targets(dataset) for dataset in parts]
        if all(each is not None for each in targets):
            self.targets = [target for each in targets for target in each]


class Rows(Dataset):
    """Rows of Hugging Face's `datasets`: an image column, and a label column.

    A label is a class (the feature ClassLabel), several classes (a List of ClassLabel), or a number (a Value
    of float). The columns are 'image' and 'label', or the only columns of their features.
    wrapped: the rows.
    UserError for other rows.
    """

    objective: dict[str, str] | None
    _plain: Callable[[Any], Any]  # a label as vet reads it

    def __init__(self, rows: Any):
        import datasets

        self.wrapped = rows
        self._image = _column(rows, 'image', _of_kind(rows, datasets.Image), 'an image (the feature Image)')
        classes, numbers = _of_kind(rows, datasets.ClassLabel), _of_kind(rows, datasets.Value, 'float')
        sets = _of_kind(rows, datasets.List, 'ClassLabel')
        words = 'a class label (the feature ClassLabel)'
        self._label = _column(rows, 'label', classes or sets or numbers, words)
        feature = rows.features[self._label]
        names = [self._label]
        if classes:
            self.objective = None
            self._plain = int
            names = feature.names
        elif sets:
            self.objective = dict(type='MultiLabel')
            self._plain = _set_of
            names = feature.feature.names
        else:
            self.objective = dict(type='Regression')
            self._plain = float
        self.classes = class_list(names)
        labels = rows.with_format(None)[self._label]
        self.targets = [label if label is None else self._plain(label) for label in labels]

    def __len__(self) -> int:
        return len(self.wrapped)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = self.wrapped[int(index)]
        image = row[self._image]
        if isinstance(image, dict):  # of the feature Image(decode=False)
            image = image['path'] if image['bytes'] is None else image['bytes']
        return image, self._plain(row[self._label])


def given_images(dataset: object, inside: str = '') -> Any:
    """A dataset with `classes`, for a dataset that a user gives.

    A dataset that has `classes` stays unchanged.

    inside: the wrapper around the dataset, in words.
    UserError if a wrapped dataset has no `classes`, if joined datasets differ in their classes, and for rows
    without an image and a label.
    """
    if hasattr(dataset, 'classes'):
        return dataset
    if isinstance(dataset, Subset):
        return Selected(dataset)
    if isinstance(dataset, ConcatDataset):
        return Joined(dataset)
    library = sys.modules.get('datasets')  # imported, if the user gives an object of the library
    if library is not None and isinstance(dataset, library.Dataset):
        return Rows(dataset)
    if library is not None and isinstance(dataset, library.DatasetDict | library.IterableDatasetDict):
        raise UserError(
            f'the dataset is a {type(dataset).__name__} with the splits {", ".join(map(str, dataset))}; give '
            'one split, such as dataset["train"].'
        )
    if library is not None and isinstance(dataset, library.IterableDataset):
        raise UserError(
            'the dataset is a stream, an IterableDataset, which has no length and no order; load it without '
            'streaming=True.'
        )
    if inside:
        raise UserError(
            f'{inside} wraps a dataset {type(dataset).__name__} that has no `classes`; set `classes` of the '
            f'{type(dataset).__name__} to the list of class names, in the order of the labels 0, 1, ….'
        )
    return dataset


def _place(index: object, size: int) -> int:
    """An index of a Subset. UserError for an index that is no whole number, or no place in the dataset."""
    try:
        place = operator.index(index)  # type: ignore[arg-type]  # see `except`
    except TypeError:
        place = size
    is_flag = isinstance(index, bool | np.bool_) or getattr(index, 'dtype', None) == torch.bool
    if is_flag or not -size <= place < size:
        raise UserError(
            f'a Subset has the index {shown(index)}, but the dataset has {size:,} images: an index is a '
            f'whole number from 0 to {size - 1:,}. For a mask of True and False, give mask.nonzero()[0].'
        )
    return place


def _difference(parts: Sequence[object], number: int, ours: list[str], theirs: list[str]) -> str:
    label = next(
        (i for i, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]), min(len(ours), len(theirs))
    )
    named = [repr(names[label]) if label < len(names) else 'no class' for names in (ours, theirs)]
    return (
        f'the parts of a ConcatDataset differ in their classes: label {label} is {named[0]} in part 0 '
        f'({type(parts[0]).__name__}, {len(ours)} classes), and {named[1]} in part {number} '
        f'({type(parts[number]).__name__}, {len(theirs)} classes). Give parts with equal `classes`.'
    )


def _set_of(labels: Iterable[Any]) -> set[int]:
    return set(map(int, labels))


def _of_kind(rows: Any, kind: type, of: str = '') -> list[str]:
    """The columns of a feature. of: a word for what the feature holds: of a Value its dtype, of a List its
    feature.
    """
    return [
        column
        for column, feature in rows.features.items()
        if isinstance(feature, kind) and of in repr(feature)
    ]


def _column(rows: Any, name: str, of_kind: list[str], words: str) -> str:
    """The column `name`, or the only column of these."""
    if name in of_kind or len(of_kind) == 1:
        return name if name in of_kind else of_kind[0]
    has = ', '.join(f'{column}: {type(feature).__name__}' for column, feature in rows.features.items())
    if name in rows.features and name == 'label':
        raise UserError(
            'the column "label" of the rows has no class names, because its feature is no ClassLabel; '
            f'`rows.class_encode_column("label")` makes the names from the values. The columns are {has}.'
        )
    raise UserError(
        f'the rows have {len(of_kind)} columns that hold {words}, and none of them is called {name!r}; '
        f'{RENAME}. The columns are {has}.'
    )
