"""Writes the tables of a suite: table.md, a page in Markdown, and table.csv, with all digits.

`vet benchmark` writes both files. The HTML report takes the heading.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from vet.benchmark.cells import COSTS, Result, failures, metric, run_name
from vet.benchmark.ranks import differences, rank_notes, rank_rows, rank_table, verdict
from vet.benchmark.suite import Suite
from vet.benchmark.tables import EARLIER, ORIGINS, Rows, Table, make_tables, source
from vet.files import JsonObject, write_file


def write_tables(folder: Path, results: Sequence[Result], suite: Suite) -> list[Table]:
    """Writes table.md and table.csv into the folder. Returns the tables."""
    tables = make_tables(results, suite)
    write_file(folder / 'table.md', markdown(tables, suite, failures(results)))
    write_file(folder / 'table.csv', as_csv(tables))
    return tables


def markdown(tables: Sequence[Table], suite: Suite, failed: Sequence[Result]) -> str:
    """The page of a suite."""
    parts = [f'# {suite.name}', _plain(suite.title), heading(suite)]
    for table in tables:
        sources = (f'[{number}] {text}' for number, text in enumerate(table.sources(), 1))
        parts += [f'## {table.title}', _items(table.notes()), _rows(table.accuracy()), _items(sources)]
        if ranks := rank_rows(table):
            parts += ['### Ranks', _items(rank_notes(table)), _rows(ranks)]
        parts += [_rows(table.costs())] if table.done else []
        parts += [_rows(table.others())] if table.others() else []
    if failed:
        parts += ['## Failed', _items(f'{run_name(result)}: {result["error"]}' for result in failed)]
    return '\n\n'.join(filter(None, parts)) + '\n'


def as_csv(tables: Sequence[Table]) -> str:
    """A line for each cell and each mean, with all digits. `state` says why a line has no number."""
    file = io.StringIO()
    columns = [
        'backbone',
        'checkpoint',
        'sha256',
        'tuner',
        'dataset',
        'group',
        'state',
        'metric',
        'mean',
        'std',
        'seeds',
        'other metrics',
        'mean rank',
        'against baseline',
        *COSTS,
        'chosen by search',
        'published',
    ]
    writer = csv.DictWriter(file, columns, lineterminator='\n')
    writer.writeheader()
    for table in tables:
        ranks = rank_table(table)
        apart = differences(table)
        for tuner in table.tuners:
            for column in [*table.datasets, *table.means]:
                known = '; '.join(
                    f'{reference.value} ({source(reference)})'
                    for reference in table.references(tuner, column)
                )
                writer.writerow(
                    dict(
                        backbone=table.label,
                        checkpoint=table.checkpoint + ORIGINS[table.origin],
                        sha256=table.sha256,
                        tuner=tuner,
                        dataset=column,
                        published=known,
                        **_numbers(table, tuner, column),
                        **{
                            'mean rank': ranks.means.get(tuner) if ranks else None,
                            'against baseline': verdict(apart.get((tuner, column))),
                        },
                    )
                )
    return file.getvalue()


def heading(suite: Suite) -> str:
    count = len(suite.seeds)
    seeds = f'mean ± sample standard deviation over {count} seeds' if count > 1 else 'of one seed'
    return (
        f'Percent; {seeds}. Written from the result files beside this page. Each file records how its '
        'number was obtained. Published values: top-1 accuracy of the checkpoint of that name.'
    )


def _numbers(table: Table, tuner: str, column: str) -> JsonObject:
    if column in table.means:
        mean = table.mean(tuner, table.means[column])
        return dict(state='not measured') if mean is None else dict(state='measured', mean=mean)
    cell = table.cells[tuner, column]
    fields: JsonObject = dict(
        group=table.groups[column], state=cell.state + EARLIER * cell.is_earlier, seeds=len(cell.done)
    )
    if cell.is_measured:
        fields |= {
            'metric': metric(cell.done[0]),
            'mean': cell.mean,
            'std': cell.std,
            'other metrics': '; '.join(f'{name} {shown}' for name, shown in cell.others.items()),
            'chosen by search': cell.point,
        }
        fields |= {name: cell.cost(name) for name in COSTS}
    return fields


def _rows(rows: Rows) -> str:
    lines = ['| ' + ' | '.join(map(_plain, row)) + ' |' for row in rows]
    return '\n'.join([lines[0], '|---' * len(rows[0]) + '|', *lines[1:]])


def _items(texts: Iterable[str]) -> str:
    return '\n'.join(f'- {_plain(text)}' for text in texts)


def _plain(text: str) -> str:
    """A text that fits into one line or one cell of Markdown."""
    return ' '.join(text.split()).replace('|', '\\|').replace('<', '&lt;')
