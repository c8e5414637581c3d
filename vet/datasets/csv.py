"""A table of image paths and labels or numbers, as text: with commas, semicolons, tabs or bars."""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from annotated_types import MinLen

from vet.datasets.base import ImageDataset, Sample, require_files, resolve_split
from vet.datasets.class_names import class_list, to_nfc, warn_of_likes
from vet.datasets.csv_text import NAMES, table_of, text_of, with_slashes
from vet.datasets.label_map import class_numbers
from vet.errors import DataError, DataWarning, UnknownNameError, UserError
from vet.registry import DATASETS

MISSING = ('nan', '<na>', 'nat')
SPLITS = ('train', 'val', 'test')
SPLIT_WORDS = {'valid': 'val', 'validation': 'val', 'dev': 'val', 'training': 'train', 'testing': 'test'}


@DATASETS.register_module()
class CSV(ImageDataset):
    """Rows of path,label. With a header, the columns may have any order, and other columns are ignored.

    file: the table, absolute or relative to `root`, with commas, semicolons, tabs or bars. Paths in the table
        are absolute or relative to the table's folder. The first row is a header if it names a path (path,
        file_name, filename, file, image, img, …) and a label (label, class, category, target, …), in any
        case. A header may also name a split (split, set, subset, partition).
    columns: the names of the columns, if the header has other names: dict(path='picture', label='kind',
        split='part').
    encoding: of the file, such as 'cp1252'. None: UTF-8, or UTF-16 if the file begins with UTF-16's mark.
    split: takes only the rows of this split. None takes all rows.
    classes: the K names in order of their numbers, {name: number}, or the name of a list as for ImageFolder.
        None: the sorted labels of the whole file (or '0' … 'K-1'), whatever the split. If train and test are
        two files, give `classes`, so that both number the classes in the same way.
    label_map: as for ImageFolder.
    separator: splits a label into several classes: 'car|tree'. If a label of the table has the separator,
        each image has a set of classes, and an empty label is an empty set: see the objective MultiLabel.
        None: labels are never split.
    targets: the names of columns of numbers, such as ['road']. Then the table needs no labels, and each image
        has these numbers: see the objective Regression.
    A label is a class name. If all labels are whole numbers (3 or 3.0), a label is a class number 0 … K-1.
    DataError, with the line's number, for a line that is wrong.
    """

    def __init__(
        self,
        root: str | Path = 'data',
        split: str | None = None,
        *,
        file: str | Path,
        classes: str | Sequence[str] | Mapping[str, int] | None = None,
        label_map: Mapping[str, int] | None = None,
        columns: Mapping[str, str] | None = None,
        encoding: str | None = None,
        separator: str | None = '|',
        targets: Annotated[list[str], MinLen(1)] | None = None,
    ):
        path = Path(root).expanduser() / Path(file).expanduser()
        if targets is not None:
            self._read_numbers(path, split, targets, classes, label_map, columns or {}, encoding)
            return
        rows = _read(path, columns or {}, encoding, separator=separator)
        if separator and any(separator in row['label'] for row in rows):
            self._read_sets(path, split, rows, separator, classes, label_map)
            return
        labels = [row['label'] for row in rows]
        if label_map is None:
            names, label = _numbering(labels, None if classes is None else class_list(classes), path)
        else:
            names, label = class_numbers(sorted(set(labels)), classes, label_map)
        self.label_map = label_map
        super().__init__(names, _samples(path, split, rows, {text: label[text] for text in labels}))

    def _read_sets(
        self,
        path: Path,
        split: str | None,
        rows: list[dict[str, str]],
        separator: str,
        classes: str | Sequence[str] | Mapping[str, int] | None,
        label_map: Mapping[str, int] | None,
    ) -> None:
        """Labels of several classes. A target is a frozenset of class numbers."""
        if label_map is not None:
            raise UserError(
                f'{str(path)!r} has labels of several classes, which label_map cannot number. Leave '
                'label_map out.'
            )
        names_of = {row['label']: _parts(row['label'], separator) for row in rows}
        singles = sorted(set().union(*names_of.values()))
        names, label = _numbering(singles, None if classes is None else class_list(classes), path)
        sets = {text: frozenset(map(label.__getitem__, parts)) for text, parts in names_of.items()}
        super().__init__(names, _samples(path, split, rows, sets), dict(type='MultiLabel'))

    def _read_numbers(
        self,
        path: Path,
        split: str | None,
        targets: list[str],
        classes: object,
        label_map: object,
        columns: Mapping[str, str],
        encoding: str | None,
    ) -> None:
        """Columns of numbers. A target is a tuple of floats."""
        if classes is not None or label_map is not None:
            raise UserError(
                f'targets is {targets}, so that an image has numbers and no class. Leave classes and '
                'label_map out.'
            )
        if 'label' in columns:
            raise UserError(
                f'targets is {targets}, so columns must name no label. Leave label out of columns.'
            )
        rows = _read(path, columns, encoding, targets=targets)
        numbers = {row['label']: tuple(map(float, row['label'].split())) for row in rows}
        super().__init__(targets, _samples(path, split, rows, numbers), dict(type='Regression'))


def _parts(label: str, separator: str) -> set[str]:
    """The class names of a label. 'car | tree|' is {'car', 'tree'}."""
    return {name.strip() for name in label.split(separator)} - {''}


def _samples(
    path: Path, split: str | None, rows: list[dict[str, str]], targets: Mapping[str, object]
) -> list[Sample]:
    """The samples of a split. targets: {label: target}."""
    if split is not None:
        splits = sorted({row['split'] for row in rows} - {''})
        if not splits:
            raise UserError(
                f'{str(path)!r} has no column split; given: split={split!r}. Leave split out to take '
                f'every row, or add the column (with a header path,label,split).'
            )
        wanted = resolve_split(SPLIT_WORDS.get(split, split), splits, f'the list {str(path)!r}')
        _warn_of_other_words(path, rows, wanted)
        rows = [row for row in rows if row['split'] in wanted]
    samples = [(path.parent / row['path'], targets[row['label']]) for row in rows]
    return require_files(samples, f'the list {str(path)!r}')


def _warn_of_other_words(path: Path, rows: list[dict[str, str]], wanted: Sequence[str]) -> None:
    """A DataWarning if a list with the words train, val or test has rows with no word or with another
    word.
    """
    words = [row['split'] for row in rows]
    others = [word for word in words if word not in (*SPLITS, *wanted)]
    if others and set(words) & set(SPLITS):
        warnings.warn(
            DataWarning(
                f'{len(others):,} of the {len(rows):,} rows of {str(path)!r} are of no split that vet knows '
                f'(such as {others[0]!r}), and are left out. The words are train, val and test.'
            ),
            stacklevel=2,
        )


def _read(
    path: Path,
    columns: Mapping[str, str],
    encoding: str | None,
    separator: str | None = None,
    targets: Sequence[str] = (),
) -> list[dict[str, str]]:
    """The rows as {'path', 'label', 'split'}.

    separator: of the classes in a label. If a label has the separator, a label may be empty.
    targets: columns of numbers. Then 'label' holds their numbers, with a space between two.
    """
    if unknown := sorted(set(columns) - set(NAMES)):
        raise UnknownNameError('key in columns', unknown[0], NAMES)
    text = text_of(path, encoding)
    numbers = {target: _place_of(path, text, columns, target) for target in targets}
    cells, places = table_of(path, text, {**columns, 'label': targets[0]} if targets else columns)
    rows = []
    labels = dict[str, tuple[str, int]]()
    are_sets = separator is not None and any(
        separator in row[place]
        for _, row in cells
        if (place := places['label']) is not None and place < len(row)
    )
    for line, row in cells:
        record = {
            name: row[place].strip() if place is not None and place < len(row) else ''
            for name, place in places.items()
        }
        if targets:
            found = [_number(path, line, row, place, name) for name, place in numbers.items()]
            record['label'] = ' '.join(map(repr, found))
        if not record['path'] or not (record['label'] or are_sets):
            raise DataError(
                f'line {line} of {str(path)!r} has no path or no label; expected: path,label; given: '
                f'{",".join(row)!r}.'
            )
        record['label'] = to_nfc(record['label'])
        if record['label'].lower() in MISSING:
            raise DataError(
                f'line {line} of {str(path)!r} has the label {record["label"]!r}, which programs write for '
                'a label that is missing. Give the label, or remove the line.'
            )
        record['split'] = _split_word(record['split'])
        record['path'] = with_slashes(record['path'])
        label, first = labels.setdefault(
            os.path.normpath(path.parent / record['path']), (record['label'], line)
        )
        if label != record['label']:
            raise DataError(
                f'{str(path)!r} gives {record["path"]!r} the label {label!r} in line {first} and '
                f'{record["label"]!r} in line {line}. An image has one label; remove one of the lines.'
            )
        rows.append(record)
    if not rows:
        raise DataError(f'{str(path)!r} has no rows; expected: path,label.')
    return rows


def _place_of(path: Path, text: str, columns: Mapping[str, str], target: str) -> int:
    """The place of a column of numbers. UserError if the header has no such column."""
    try:
        place = table_of(path, text, {**columns, 'label': target})[1]['label']
    except UserError as error:
        if isinstance(error, DataError):
            raise
        place = None
    if place is None:
        first = next(iter(text.splitlines()), '')
        raise UserError(
            f'targets names {target!r}, but the header of {str(path)!r} is {first!r}; name columns of the '
            'header, and a column with the paths, such as path,road.'
        )
    return place


def _number(path: Path, line: int, row: Sequence[str], place: int, name: str) -> float:
    """The number of a cell. DataError, with the line, for a cell that holds no finite number."""
    cell = row[place].strip() if place < len(row) else ''
    try:
        value = math.nan if '_' in cell else float(cell)  # Python reads 1_0 as 10
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f'line {line} of {str(path)!r} has {cell!r} as {name!r}; a target is a finite number, such as '
            '0.25. Correct the number, or remove the line.'
        )
    return value


def _split_word(text: str) -> str:
    """'train', 'val' or 'test' for the known spellings. Another word stays unchanged."""
    word = text.lower()
    return SPLIT_WORDS.get(word, word if word in SPLITS else text)


def _numbering(
    labels: list[str], classes: Sequence[str] | None, path: Path
) -> tuple[list[str], dict[str, int]]:
    """Class names, and the class number of each label."""
    found = set(labels)
    numbers = {text: int(text.partition('.')[0]) for text in found if _is_whole_number(text)}
    are_numbers = len(numbers) == len(found)
    if classes is None and are_numbers:
        used = set(numbers.values())
        if used != set(range(len(used))):
            raise DataError(
                f'the class numbers in {str(path)!r} are not 0 … {len(used) - 1}, each used at least '
                f'once: {sorted(used)[:10]}. Count from 0, or give the names of all classes as '
                f'classes=[…].'
            )
        return [str(number) for number in range(len(used))], numbers
    names = sorted(found) if classes is None else list(classes)
    if classes is None:
        warn_of_likes(names)
        _warn_of_measured(path, names)
    label = {name: number for number, name in enumerate(names)}
    if are_numbers and not found <= set(names) and not all(map(str.isdecimal, names)):
        label = {text: number for text, number in numbers.items() if number < len(names)}
    if unknown := sorted(found - set(label)):
        raise DataError(
            f'{str(path)!r} has labels that are not among the {len(names)} classes: '
            f'{", ".join(unknown[:10])}. Correct them, or complete classes=[…].'
        )
    return names, label


def _warn_of_measured(path: Path, names: Sequence[str]) -> None:
    """A DataWarning if all labels are numbers, and some are not whole: then they may be measured."""
    try:
        fractions = [name for name in names if not float(name).is_integer()]
    except (ValueError, OverflowError):  # a label is no finite number
        return
    if fractions:
        warnings.warn(
            DataWarning(
                f'the labels of {str(path)!r} are numbers, such as {fractions[0]}, and count as '
                f'{len(names):,} classes. If they are measured, name their column as targets=[…], which '
                'trains a regression.'
            ),
            stacklevel=2,
        )


def _is_whole_number(text: str) -> bool:
    """Whether the text is a class number. A program may have written 3 as '3.0'."""
    number, _, zeros = text.partition('.')
    return number.isdecimal() and set(zeros) <= {'0'}
