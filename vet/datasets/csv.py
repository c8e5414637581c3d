"""A CSV file of image paths and labels."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from vet.datasets.base import ImageDataset, require_files, resolve_split
from vet.datasets.label_map import class_list, numbered
from vet.errors import DataError, UserError
from vet.registry import DATASETS


@DATASETS.register_module()
class CSV(ImageDataset):
    """Rows of path,label, or with a header path,label,split in any order; further columns are not read.

    file: the CSV, absolute or relative to `root`. Paths in it are absolute or relative to the file itself. A first row
    that has the cells 'path' and 'label' is the header. split: takes only the rows of that split; None takes all.

    A label is a class name, or, if all labels are whole numbers, a class number 0 … K-1. classes: the K names in order
    of their numbers; by default the sorted names (or '0' … 'K-1') of the whole file, whatever the split. Give it where
    train and test are two files, so that both number the classes equally. Raises DataError with the line's number.
    label_map, and a name for `classes`: as for ImageFolder.
    """

    def __init__(self, root: str | Path = 'data', split: str | None = None, *, file: str | Path,
                 classes: str | Sequence[str] | None = None, label_map: Mapping[str, int] | None = None):
        path = Path(root).expanduser() / Path(file).expanduser()
        rows = _read(path)
        found = [row['label'] for row in rows]
        if label_map is None:
            names, label = _numbering(found, classes and class_list(classes), path)
        else:
            names, label = numbered(sorted(set(found)), classes, label_map)
        self.label_map = label_map
        if split is not None:
            splits = sorted({row['split'] for row in rows} - {''})
            if not splits:
                raise UserError(f'{str(path)!r} has no column split; given: split={split!r}. Leave split out to take '
                                f'every row, or add the column (with a header path,label,split).')
            wanted = resolve_split(split, splits, f'the list {str(path)!r}')
            rows = [row for row in rows if row['split'] in wanted]
        samples = [(path.parent / row['path'], label[row['label']]) for row in rows]
        require_files(samples, f'the list {str(path)!r}')
        super().__init__(names, samples)


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise DataError(f'there is no CSV file {str(path)!r}. Give `file`, absolute or relative to the data root '
                        f'(--data-root DIR or VET_DATA_ROOT).')
    with path.open(newline='', encoding='utf-8-sig') as lines:
        reader = csv.reader(lines)
        cells = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    header = ['path', 'label']
    if cells and {'path', 'label'} <= set(cells[0][1]):
        header = cells.pop(0)[1]
    rows = []
    for number, row in cells:
        record = {'split': '', **dict(zip(header, row))}
        if not record.get('path') or not record.get('label'):
            raise DataError(f'line {number} of {str(path)!r} has no path or no label; expected: {",".join(header)}; '
                            f'given: {",".join(row)!r}.')
        rows.append(record)
    if not rows:
        raise DataError(f'{str(path)!r} has no rows; expected: path,label.')
    return rows


def _numbering(labels: list[str], classes: Sequence[str] | None, path: Path) -> tuple[list[str], dict[str, int]]:
    """Class names, and the class number of each label."""
    found = set(labels)
    if classes is None and all(map(str.isdecimal, found)):
        classes = [str(number) for number in range(len(found))]
        if {int(label) for label in found} != set(range(len(found))):
            raise DataError(f'the class numbers in {str(path)!r} are not 0 … {len(found) - 1}, each used at least '
                            f'once: {sorted(map(int, found))[:10]}. Count from 0, or give the names of all classes as '
                            f'classes=[…].')
    names = sorted(found) if classes is None else list(map(str, classes))
    label = {name: number for number, name in enumerate(names)}
    if all(map(str.isdecimal, found)) and not found <= set(names):
        label = {text: int(text) for text in found if int(text) < len(names)}
    if unknown := sorted(found - set(label)):
        raise DataError(f'{str(path)!r} has labels that are not among the {len(names)} classes: '
                        f'{", ".join(unknown[:10])}. Correct them, or complete classes=[…].')
    return names, label
