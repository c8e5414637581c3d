"""A table of image paths and labels or numbers, as text: with commas, semicolons, tabs or bars."""

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from vet.datasets.base import ImageDataset, Sample, on_disk, require_files, resolve_split
from vet.datasets.class_names import class_list, to_nfc
from vet.datasets.label_map import class_numbers
from vet.errors import DataError, UnknownNameError, UserError
from vet.registry import DATASETS

# names of a column in a header, in small letters; if a header has several of them, the first in this list
# counts
NAMES = dict(
    path=(
        'path',
        'file_name',
        'filename',
        'file_path',
        'filepath',
        'file',
        'image_path',
        'img_path',
        'image_name',
        'img_name',
        'image',
        'img',
        'image_id',
        'id',
        'name',
        'url',
    ),
    label=(
        'label',
        'class',
        'category',
        'target',
        'class_name',
        'label_name',
        'category_name',
        'class_id',
        'label_id',
        'category_id',
        'labels',
        'classes',
        'species',
        'y',
    ),
    split=('split', 'set', 'subset', 'partition', 'data_set', 'dataset', 'phase'),
)
DELIMITERS = ',;\t|'
MISSING = ('nan', '<na>', 'nat')
BOMS = {b'\xff\xfe': 'utf-16', b'\xfe\xff': 'utf-16'}
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
                f'targets is {targets}, so that columns may not name a label. Leave label out of columns.'
            )
        rows = _read(path, columns, encoding, targets=targets)
        numbers = {row['label']: tuple(map(float, row['label'].split())) for row in rows}
        super().__init__(targets, _samples(path, split, rows, numbers), dict(type='Regression'))


def _parts(label: str, separator: str) -> set[str]:
    """The class names of a label. 'car | tree|' is {'car', 'tree'}."""
    return {part.strip() for part in label.split(separator)} - {''}


def _samples(
    path: Path, split: str | None, rows: list[dict[str, str]], targets: Mapping[str, Any]
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
        rows = [row for row in rows if row['split'] in wanted]
    samples = [(path.parent / row['path'], targets[row['label']]) for row in rows]
    return require_files(samples, f'the list {str(path)!r}')


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
    text = _text(path, encoding)
    numbers = {target: _place_of(path, text, columns, target) for target in targets}
    cells, places = _table(path, text, {**columns, 'label': targets[0]} if targets else columns)
    rows, labels = [], dict[str, tuple[str, int]]()
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
        record['path'] = _slashes(record['path'])
        label, first = labels.setdefault(record['path'], (record['label'], line))
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
        place = _table(path, text, {**columns, 'label': target})[1]['label']
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
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f'line {line} of {str(path)!r} has {cell!r} as {name!r}; a target is a finite number, such as '
            '0.25. Correct the number, or remove the line.'
        )
    return value


def _text(path: Path, encoding: str | None) -> str:
    if not path.is_file():
        raise DataError(
            f'there is no CSV file {str(path)!r}. Give `file`, absolute or relative to the data root '
            f'(--data-root DIR or VET_DATA_ROOT).'
        )
    data = path.read_bytes()
    chosen = encoding or BOMS.get(data[:2], 'utf-8-sig')
    try:
        return data.decode(chosen)
    except LookupError as error:
        raise UserError(
            f'encoding is {encoding!r}, which Python does not know; give an encoding such as "utf-8" or '
            '"cp1252".'
        ) from error
    except UnicodeError as error:
        line = data.count(b'\n', 0, getattr(error, 'start', 0)) + 1
        raise DataError(
            f'{str(path)!r} is not {encoding or "UTF-8"}: {error} (line {line}). Save the file as UTF-8, or '
            'name its encoding, such as encoding="cp1252".'
        ) from error


def _table(
    path: Path, text: str, columns: Mapping[str, str]
) -> tuple[list[tuple[int, list[str]]], dict[str, int | None]]:
    """The rows below the header with their line numbers, and the place of each column.

    The delimiter is the first with which the header names a path and a label. Without a header, the delimiter
    is the first that gives every row two cells or more.
    """
    tables = {delimiter: _cells(path, text, delimiter) for delimiter in DELIMITERS}
    for cells in tables.values():
        places = _places(cells[0][1], columns, path) if cells else {}
        if None not in (places.get('path'), places.get('label')):
            _refuse_longer(path, cells)
            return cells[1:], places
    if columns:
        first = next(iter(text.splitlines()), '')
        raise UserError(
            f'columns is {dict(columns)}, but the header of {str(path)!r} is {first!r}; name columns of the '
            'header.'
        )
    for cells in tables.values():
        if cells and all(len(row) > 1 for _, row in cells):
            _refuse_unknown_header(path, cells)
            _refuse_longer(path, cells)
            return cells, dict(path=0, label=1, split=None)
    return tables[','], dict(path=0, label=1, split=None)


def _refuse_longer(path: Path, cells: list[tuple[int, list[str]]]) -> None:
    """DataError for a row that has more cells than the first row: vet would not read its last cells."""
    width = len(cells[0][1])
    for number, row in cells:
        if any(cell.strip() for cell in row[width:]):
            raise DataError(
                f'line {number} of {str(path)!r} has {len(row)} cells, the first line has {width}. Put a '
                f'cell with a delimiter in quotation marks, or name all columns; given: {",".join(row)!r}.'
            )


def _refuse_unknown_header(path: Path, cells: list[tuple[int, list[str]]]) -> None:
    """DataError if the first row names no file, but the second row does.

    Then the first row is a header whose words are not known.
    """
    if len(cells) > 1 and [
        os.path.isfile(on_disk(path.parent / _slashes(row[0]))) for _, row in cells[:2]
    ] == [False, True]:
        first = cells[0][1]
        raise DataError(
            f'the first row of {str(path)!r} is {",".join(first)!r}: its first cell names no file, and the '
            'row is no header with path and label. Name the columns, such as '
            f'columns=dict(path={first[0].strip()!r}, label=…), or correct the path.'
        )


def _slashes(path: str) -> str:
    """A path with the slashes of this system. The path may come from Windows."""
    return path.strip() if os.sep == '\\' else path.strip().replace('\\', '/')


def _cells(path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(
        text.splitlines(keepends=True), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    try:
        return [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        if delimiter != DELIMITERS[0]:
            return []
        raise DataError(
            f'line {reader.line_num} of {str(path)!r} cannot be read: {error}. Close every quotation mark.'
        ) from error


def _places(header: list[str], columns: Mapping[str, str], path: Path) -> dict[str, int | None]:
    """The place of each column in a header. None: the header does not have the column."""
    plain = [cell.strip().lower().replace(' ', '_').replace('-', '_') for cell in header]
    places: dict[str, int | None] = {}
    for column, names in NAMES.items():
        wanted = (
            [columns[column].strip().lower().replace(' ', '_').replace('-', '_')]
            if column in columns
            else list(names)
        )
        name = next((name for name in wanted if name in plain), None)
        if name is not None and plain.count(name) > 1:
            raise DataError(
                f'the header of {str(path)!r} has {plain.count(name)} columns {name!r}; rename all but one.'
            )
        places[column] = None if name is None else plain.index(name)
    return places


def _split_word(text: str) -> str:
    """'train', 'val' or 'test' for the known spellings. Another word stays unchanged."""
    word = text.lower()
    return SPLIT_WORDS.get(word, word if word in ('train', 'val', 'test') else text)


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
    label = {name: number for number, name in enumerate(names)}
    if are_numbers and not found <= set(names) and not all(map(str.isdecimal, names)):
        label = {text: number for text, number in numbers.items() if number < len(names)}
    if unknown := sorted(found - set(label)):
        raise DataError(
            f'{str(path)!r} has labels that are not among the {len(names)} classes: '
            f'{", ".join(unknown[:10])}. Correct them, or complete classes=[…].'
        )
    return names, label


def _is_whole_number(text: str) -> bool:
    """Whether the text is a class number. A program may have written 3 as '3.0'."""
    number, _, zeros = text.partition('.')
    return number.isdecimal() and set(zeros) <= {'0'}
