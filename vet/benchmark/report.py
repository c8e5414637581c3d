"""The report of a suite: one HTML page with all tables and plots. The page loads nothing from anywhere."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from vet.benchmark.cells import Cell, Result, failures, metric, run_name
from vet.benchmark.plots import accuracy_plot, classes_plot, confusion_plot, curves_plot
from vet.benchmark.suite import Suite
from vet.benchmark.tables import Rows, Table, heading, make_tables
from vet.errors import UnknownNameError
from vet.files import write_file

# LISTED: the most classes and confusions in a list; MATRIX: the most classes of a matrix that people can read
LISTED, MATRIX = 20, 50
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1c2127; max-width: 1180px;
        margin: 2rem auto; padding: 0 1.5rem; }}
h1, h2, h3 {{ line-height: 1.2; }}
h2 {{ margin-top: 2.5rem; border-bottom: 1px solid #d5dae0; padding-bottom: .3rem; }}
ul {{ padding-left: 1.3rem; color: #4a535e; font-size: 13px; overflow-wrap: anywhere; }}
.wide {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }}
th, td {{ padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #e3e6ea; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
thead th {{ border-bottom: 2px solid #8a929c; white-space: normal; vertical-align: bottom; }}
tr.published td {{ white-space: normal; }}
tr.published, td.none {{ color: #6b7480; font-size: 13px; font-style: italic; }}
figure {{ margin: 0; }}
figcaption, .caption {{ color: #4a535e; font-size: 13px; }}
.figures {{ display: flex; flex-wrap: wrap; gap: 1.2rem 2rem; margin: 1rem 0; }}
svg {{ max-width: 100%; height: auto; }}
summary {{ cursor: pointer; font-weight: 600; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f6f8; padding: .6rem; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_report(folder: Path, results: Sequence[Result], suite: Suite, run: str | None = None) -> Path:
    """Writes report.html into the folder. run: the run whose classes the page shows; None: the best run."""
    write_file(folder / 'report.html', report(results, suite, run))
    return folder / 'report.html'


def report(results: Sequence[Result], suite: Suite, run: str | None = None) -> str:
    """The page. UnknownNameError for a run that has no accuracy by class."""
    parts = [_element('h1', suite.name), _element('p', suite.title), _element('p', heading(suite))]
    for table in make_tables(results, suite):
        sources = (f'[{number}] {text}' for number, text in enumerate(table.sources(), 1))
        parts += [
            _element('h2', table.title),
            _items(table.notes()),
            _table(table.accuracy()),
            _items(sources),
        ]
        parts += _plots(table) if table.done else []
    chosen = choose(results, run)
    parts += [*(_classes(chosen) if chosen else []), *_failed(failures(results))]
    return PAGE.format(title=escape(f'{suite.name}: results'), body='\n'.join(parts))


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
        _element(
            'p',
            'Blue, with a line: the Pareto front; no other tuner has as few parameters and this accuracy. '
            'Bars: ± the standard deviation.',
            'caption',
        )
    )
    parts.append(
        _figures(
            (accuracy_plot(cells), f'{dataset} on {table.label}')
            for dataset, cells in measured.items()
            if cells
        )
    )
    parts += [
        '<h3>Training</h3>',
        _element(
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
        figures = _figures(curves)
        is_open = ' open' if len(table.datasets) == 1 else ''
        parts.append(
            f'<details{is_open}>{_element("summary", f"{dataset} on {table.label}")}{figures}</details>'
            if cells
            else ''
        )
    return parts


def _classes(result: Result) -> list[str]:
    """The accuracy of each class, and the most frequent wrong answers, of one run."""
    images, names = result['images_by_class'], result['class_names']
    classes = len(names)
    often = sorted(result['confusion'], key=lambda entry: -entry[2])[:LISTED]
    confusions = [
        ['true class', 'answer given', 'times', 'of the class'],
        *(
            [names[truth], names[given], str(count), f'{100 * count / images[truth]:.1f} %']
            for truth, given, count in often
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
        _element('h2', f'By class: {run_name(result)}'),
        _element(
            'p',
            f'{metric(result)} {100 * result["metrics"][metric(result)]:.2f} % on {sum(images):,} test '
            f'images of {classes} classes.',
        ),
        _figures([(classes_plot(result), 'Accuracy of each class')]),
        '<h3>Hardest classes, and most frequent confusions</h3>',
        f'<div class="figures">{_table(hardest)}{_table(confusions)}'
        f'{"".join(_figure(*figure) for figure in matrix)}</div>',
    ]


def _failed(results: Sequence[Result]) -> list[str]:
    runs = [_element('h3', run_name(result)) + _element('pre', result['error']) for result in results]
    return ['<h2>Failed</h2>', *runs] if runs else []


def _table(rows: Rows) -> str:
    """An HTML table. The first row is the header."""
    header, *lines = map(_on_one_line, rows)
    head = ''.join(_element('th', text) for text in header)
    body = ''
    for line in lines:
        cells = ''.join(_element('td', text, 'none' if text == 'not measured' else '') for text in line)
        body += f'<tr class="{"published" if line[0].startswith("published") else "measured"}">{cells}</tr>'
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _on_one_line(row: Sequence[str]) -> list[str]:
    """The row, in which each value stays on one line with the number of its source."""
    return [text.replace(' [', '\u00a0[') for text in row]


def _figures(figures: Iterable[tuple[str, str]]) -> str:
    return f'<div class="figures">{"".join(_figure(*figure) for figure in figures)}</div>'


def _figure(svg: str, caption: str) -> str:
    named = svg.replace('<svg', f'<svg role="img" aria-label="{escape(caption)}"', 1)
    return f'<figure>{named}{_element("figcaption", caption)}</figure>'


def _items(texts: Iterable[str]) -> str:
    return f'<ul>{"".join(_element("li", text) for text in texts)}</ul>'


def _element(tag: str, text: str, kind: str = '') -> str:
    """An element around a text. The text is escaped."""
    return f'<{tag} class="{kind}">{escape(text)}</{tag}>' if kind else f'<{tag}>{escape(text)}</{tag}>'
