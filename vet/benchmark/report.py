"""The report of a suite: one HTML page with all tables and plots. The page loads nothing from anywhere."""

from collections.abc import Sequence
from pathlib import Path

from vet.benchmark.cells import Cell, Result, failures, metric, run_name
from vet.benchmark.plots import AGAINST, PARAMETERS, accuracy_plot, classes_plot, confusion_plot, curves_plot
from vet.benchmark.ranks import rank_notes, rank_rows
from vet.benchmark.suite import Suite
from vet.benchmark.table_files import heading
from vet.benchmark.tables import Rows, Table, make_tables
from vet.errors import UnknownNameError
from vet.files import write_file
from vet.report.page import element, figure, figures, items, page

# LISTED: the most classes and confusions in a list; MATRIX: the most classes of a matrix that people can read
LISTED = 20
MATRIX = 50


def write_report(folder: Path, results: Sequence[Result], suite: Suite, run: str | None = None) -> Path:
    """Writes report.html into the folder. run: the run whose classes the page shows; None: the best run."""
    write_file(folder / 'report.html', report(results, suite, run))
    return folder / 'report.html'


def report(results: Sequence[Result], suite: Suite, run: str | None = None) -> str:
    """The page. UnknownNameError for a run that has no accuracy by class."""
    parts = [element('h1', suite.name), element('p', suite.title), element('p', heading(suite))]
    for table in make_tables(results, suite):
        sources = (f'[{number}] {text}' for number, text in enumerate(table.sources(), 1))
        parts += [element('h2', table.title), items(table.notes()), _table(table.accuracy()), items(sources)]
        if ranks := rank_rows(table):
            parts += ['<h3>Ranks</h3>', items(rank_notes(table)), _table(ranks)]
        if others := table.others():
            parts += ['<h3>Further metrics</h3>', _table(others)]
        parts += _plots(table) if table.done else []
    chosen = choose(results, run)
    parts += [*(_classes(chosen) if chosen else []), *_failed(failures(results))]
    return page(f'{suite.name}: results', parts)


def choose(results: Sequence[Result], run: str | None = None) -> Result | None:
    """The result of the run with that name.

    Without a name: the best result. None: no run has accuracies by class.
    """
    named = {
        run_name(result): result for result in results if result.get('per_class') and not result['is_search']
    }
    if run is None:
        return max(named.values(), key=lambda result: result['metrics'][metric(result)], default=None)
    if run not in named:
        raise UnknownNameError(
            'run', run, named, 'Failed runs, searches and runs of several tasks have no accuracy by class.'
        )
    return named[run]


def _plots(table: Table) -> list[str]:
    parts = ['<h3>What it costs</h3>', _table(table.costs()), '<h3>Accuracy against trained parameters</h3>']
    measured: dict[str, dict[str, Cell]] = {dataset: {} for dataset in table.datasets}
    for (tuner, dataset), cell in table.cells.items():
        if cell.is_measured:
            measured[dataset][tuner] = cell
    parts.append(
        element(
            'p',
            'Blue, with a line: the Pareto front; no other tuner has as few parameters and this accuracy. '
            'Bars: ± the standard deviation.',
            'caption',
        )
    )
    parts.append(
        figures(
            (accuracy_plot(cells), f'{dataset} on {table.label}')
            for dataset, cells in measured.items()
            if cells
        )
    )
    costs = [cost for cost in AGAINST if cost != PARAMETERS]
    others = figures(
        (accuracy_plot(cells, cost), f'{dataset} on {table.label}: {AGAINST[cost]}')
        for dataset, cells in measured.items()
        for cost in (costs if cells else [])
    )
    parts.append(f'<details><summary>Accuracy against bytes, seconds and memory</summary>{others}</details>')
    parts += [
        '<h3>Training</h3>',
        element(
            'p',
            'A colour for each seed. Dotted: accuracy on training images as they were augmented; full line: '
            'accuracy on validation images, if the suite has any.',
            'caption',
        ),
    ]
    for dataset in table.datasets:
        cells = {tuner: cell for tuner in table.tuners if (cell := table.cells[tuner, dataset]).done}
        curves = []
        for tuner, cell in cells.items():
            seeds = ', '.join(str(result['seed']) for result in cell.done)
            curves.append((curves_plot(cell.done), f'{tuner}: seeds {seeds}'))
        drawn = figures(curves)
        is_open = ' open' if len(table.datasets) == 1 else ''
        parts.append(
            f'<details{is_open}>{element("summary", f"{dataset} on {table.label}")}{drawn}</details>'
            if cells
            else ''
        )
    return parts


def _classes(result: Result) -> list[str]:
    """The accuracy of each class, and the most frequent wrong answers, of one run."""
    images = result['images_by_class']
    names = result['class_names']
    classes = len(names)
    often = sorted(result['confusion'], key=lambda entry: -entry[2])[:LISTED]
    confusions = [
        ['true class', 'answer given', 'times', 'of the class'],
        *(
            [names[truth], names[answer], str(count), f'{100 * count / images[truth]:.1f} %']
            for truth, answer, count in often
        ),
    ]
    worst = sorted(
        (accuracy, number) for number, accuracy in enumerate(result['per_class']) if images[number]
    )[:LISTED]
    hardest = [
        ['class', 'accuracy', 'test images'],
        *([names[number], f'{100 * accuracy:.1f} %', str(images[number])] for accuracy, number in worst),
    ]
    matrix = (
        [(confusion_plot(result, classes), 'Share of each class that got each answer')]
        if classes <= MATRIX
        else []
    )
    return [
        element('h2', f'By class: {run_name(result)}'),
        element(
            'p',
            f'{metric(result)} {100 * result["metrics"][metric(result)]:.2f} % on {sum(images):,} test '
            f'images of {classes} classes.',
        ),
        figures([(classes_plot(result), 'Accuracy of each class')]),
        '<h3>Hardest classes, and most frequent confusions</h3>',
        f'<div class="figures">{_table(hardest)}{_table(confusions)}'
        f'{"".join(figure(*each) for each in matrix)}</div>',
    ]


def _failed(results: Sequence[Result]) -> list[str]:
    runs = [element('h3', run_name(result)) + element('pre', result['error']) for result in results]
    return ['<h2>Failed</h2>', *runs] if runs else []


def _table(rows: Rows) -> str:
    """An HTML table. The first row is the header."""
    header, *lines = map(_on_one_line, rows)
    head = ''.join(element('th', text) for text in header)
    body = ''
    for line in lines:
        cells = ''.join(element('td', text, 'none' if text == 'not measured' else '') for text in line)
        body += f'<tr class="{"published" if line[0].startswith("published") else "measured"}">{cells}</tr>'
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _on_one_line(row: Sequence[str]) -> list[str]:
    """The row, in which each value stays on one line with the number of its source."""
    return [text.replace(' [', '\u00a0[') for text in row]
