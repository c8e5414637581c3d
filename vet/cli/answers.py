"""Writes the answers of `vet predict`, each as it comes: as a table, JSON, JSON lines or CSV."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

from vet.core.objective import UNSURE, Answer, Objective
from vet.errors import UserError
from vet.escapes import cell, escaped

Row = tuple[str, Answer | UserError]  # the image's name, and its answer
Rows = Iterator[Row]
FAILED = 'not read'  # in the place of a score in a table


def write_answers(rows: Rows, form: str, names: Sequence[str], objective: Objective) -> Iterator[str]:
    """Texts, which together are the answers in a form of FORMS.

    Each text is made when its image has its answer. names: of all images, for the width of a column.
    """
    return FORMS[form](rows, names, objective)


def _table(rows: Rows, names: Sequence[str], objective: Objective) -> Iterator[str]:
    """Columns that are aligned. No name is cut or broken."""
    width = max(map(cell_len, map(escaped, ['image', *names])))
    label_width = max(map(cell_len, map(escaped, ['label', UNSURE, *objective.names])))

    def line(*cells: str) -> str:
        image, label, score = map(escaped, cells)
        return f'{set_cell_size(image, width)}  {set_cell_size(label, label_width)}  {score}'.rstrip() + '\n'

    yield line('image', 'label', 'score')
    for name, answer in rows:
        if isinstance(answer, UserError):
            yield f'{set_cell_size(escaped(name), width)}  {FAILED}: {escaped(str(answer))}\n'
            continue
        for number, (label, score) in enumerate(objective.rows(answer) or [('', '')]):
            yield line('' if number else name, label, score)


def _json(rows: Rows, names: Sequence[str], objective: Objective) -> Iterator[str]:
    """One list. JSON reads the escapes of control characters back."""
    before = '[\n '
    for row in rows:
        text = json.dumps(_plain(*row, objective), indent=1, ensure_ascii=False)
        yield before + escaped(text).replace('\n', '\n ')
        before = ',\n '
    yield '[]\n' if before.startswith('[') else '\n]\n'


def _json_lines(rows: Rows, names: Sequence[str], objective: Objective) -> Iterator[str]:
    """One object in each line."""
    for row in rows:
        yield escaped(json.dumps(_plain(*row, objective), ensure_ascii=False)) + '\n'


def _csv(rows: Rows, names: Sequence[str], objective: Objective) -> Iterator[str]:
    """One row for each image."""
    columns = ['image', *objective.columns, 'error']
    yield _csv_line(columns)
    for name, answer in rows:
        if isinstance(answer, UserError):
            yield _csv_line([name, *([''] * len(objective.columns)), str(answer)])
        else:
            flat = objective.flat(answer)
            yield _csv_line([name, *(flat[column] for column in objective.columns), ''])


def _plain(name: str, answer: Answer | UserError, objective: Objective) -> dict[str, Any]:
    if isinstance(answer, UserError):
        return dict(image=name, error=str(answer))
    return dict(image=name, **objective.plain(answer))


def _csv_line(values: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerow(
        [cell(value) if isinstance(value, str) else value for value in values]
    )
    return text.getvalue()


FORMS: dict[str, Callable[[Rows, Sequence[str], Objective], Iterator[str]]] = {
    'table': _table,
    'json': _json,
    'jsonl': _json_lines,
    'csv': _csv,
}
