"""The page of a search: all trials, and the best trial of each candidate against its size and its time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vet.report.charts import tradeoff
from vet.report.page import element, figures, page, table
from vet.search.search import Tried

HEADER = ('candidate', 'learning rate', 'validation', 'epochs', 'trained numbers', 'seconds')
LISTED = 30  # trials in the table of a terminal


def search_page(folder: Path, metric: str, tried: Sequence[Tried]) -> str:
    """A page of HTML that loads nothing from anywhere. tried: the best first."""
    best = {each.candidate: each for each in reversed(tried) if each.is_whole}
    by_size = {name: (float(each.numbers), each.value) for name, each in best.items()}
    by_time = {name: (each.seconds, each.value) for name, each in best.items()}
    drawn = [
        (tradeoff(points, cost, metric), f'{metric} of validation against {cost}: each candidate at its best')
        for points, cost in ((by_size, 'trained numbers'), (by_time, 'seconds of training'))
    ]
    text = (
        f'{len(tried):,} trials, the best first. Validation images alone judge. A trial that ended early '
        'was not among the best third at that epoch, or time was up.'
    )
    return page(
        f'Search: {folder}',
        [
            f'<header>{element("h1", "Search")}{element("p", str(folder))}</header>',
            element('p', text),
            table([HEADER, *rows(tried)], 'Trials'),
            element('h2', 'What more numbers and more time give'),
            figures(drawn),
        ],
    )


def rows(tried: Sequence[Tried]) -> Iterator[tuple[str, ...]]:
    for each in tried:
        epochs = f'{each.epochs}' if each.is_whole else f'{each.epochs}, ended early'
        yield (
            each.candidate,
            f'{each.rate:.2g}',
            f'{each.value:.4f}',
            epochs,
            f'{each.numbers:,}',
            f'{each.seconds:.0f}',
        )
