"""The text of a CSV file as cells: its encoding, its delimiter, its header, and the places of its columns.

csv.py reads a table here, and makes samples of the rows.
"""

import csv
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path

from vet.datasets.base import on_disk
from vet.errors import DataError, UserError

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
BOMS = {b'\xff\xfe': 'utf-16', b'\xfe\xff': 'utf-16'}


def text_of(path: Path, encoding: str | None) -> str:
    if not path.is_file():
        raise DataError(
            f'there is no CSV file {str(path)!r}. Give `file`, absolute or relative to the data root '
            f'(--data-root DIR or VET_DATA_ROOT).'
        )
    data = path.read_bytes()
    chosen = encoding or BOMS.get(data[:2], 'utf-8-sig')
    try:
        text = data.decode(chosen)
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
    if '\0' in text:
        raise DataError(
            f'{str(path)!r} is not {encoding or "UTF-8"}: the text holds characters of the number 0. Save '
            'the file as UTF-8, or name its encoding, such as encoding="utf-16-le".'
        )
    return re.sub(r'\Asep=.(?=\r|\n)', '', text)  # a line with which Excel names the delimiter


def table_of(
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
        os.path.isfile(on_disk(path.parent / with_slashes(row[0]))) for _, row in cells[:2]
    ] == [False, True]:
        first = cells[0][1]
        raise DataError(
            f'the first row of {str(path)!r} is {",".join(first)!r}: its first cell names no file, and the '
            'row is no header with path and label. Name the columns, such as '
            f'columns=dict(path={first[0].strip()!r}, label=…), or correct the path.'
        )


def with_slashes(path: str) -> str:
    """A path with the slashes of this system. The path may come from Windows."""
    return path.strip() if os.sep == '\\' else path.strip().replace('\\', '/')


def _cells(path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(
        io.StringIO(text, newline=''), delimiter=delimiter, strict=True, skipinitialspace=True
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
