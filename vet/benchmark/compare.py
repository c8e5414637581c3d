"""Comparison of two sets of results: whether the means of a cell differ by more than its seeds scatter.

Welch's t of the two means over seeds, which needs no equal variances. Runs are not paired by seed: one seed
gives two tuners the same batches, but nothing makes it help or harm both alike, and of three seeds pairing
would leave 2 degrees of freedom in place of up to 4; where a seed does help both, Welch's t only errs to the
safe side. The 95 % interval of each cell stands alone; p and the verdict are corrected for the number of
cells compared (Holm 1979): where nothing differs, the chance of even one 'differs' is 5 %.
Seeds that do not scatter at all are taken at their word: any difference is then one.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from glob import glob
from itertools import accumulate
from pathlib import Path

from rich.table import Column, Table
from scipy.stats import t as student

from vet.benchmark.cells import Cell, Result, make_cell, metric, run_name
from vet.benchmark.results import read_named, read_results, same_data
from vet.errors import DataError

LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """Of one cell. difference: mean(b) - mean(a) in percent points; interval: of it, 95 %; p: of none.
    None: cannot be told.
    """

    name: str
    a: Cell
    b: Cell
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    verdict: str = ''  # or why there is none


def compare(a: Sequence[Result], b: Sequence[Result]) -> list[Comparison]:
    """Every cell that both have, in the order of `a`; where one of them has several suites, suite by
    suite.
    """
    by_suite = any(len({one['suite'] for one in side}) > 1 for side in (a, b))
    ours, theirs = _cells(a, by_suite), _cells(b, by_suite)
    return _judged([_compare(name, ours[name], theirs[name]) for name in ours if name in theirs])


def read_side(place: str) -> list[Result]:
    """The whole results in a folder, in the folders of its suites, or in the files that fit a pattern.

    DataError without one, and where a run is there twice: it would pass for two seeds.
    """
    path = Path(place)
    found = read_results(path) or [
        result for folder in sorted(path.glob('*')) for result in read_results(folder)
    ]
    found = found or [
        result for file in sorted(glob(place)) if (result := read_named(Path(file))) is not None
    ]
    if not found:
        raise DataError(
            f'{place!r} has no whole result; give a folder of results, one suite in it, or a quoted pattern '
            'of files, '
            f"such as 'benchmarks/results/fgvc/*.lora.*.json'."
        )
    [(run, count)] = Counter((one['suite'], run_name(one)) for one in found).most_common(1)
    if count > 1:
        raise DataError(
            f'{place!r} has {count} results of one run, {run[1]} of {run[0]}; give the folder of one of them.'
        )
    return found


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[tuple[float, float], float]:
    """The 95 % interval of mean(b) - mean(a), and the chance of such a difference where there is none."""
    difference = statistics.fmean(b) - statistics.fmean(a)
    variances = [statistics.variance(values) / len(values) for values in (a, b)]
    error = sum(variances) ** 0.5
    if error == 0:
        return (difference, difference), float(difference == 0)
    freedom = sum(variances) ** 2 / sum(one**2 / (len(values) - 1) for one, values in zip(variances, (a, b)))
    half = float(student.ppf(1 - LEVEL / 2, freedom)) * error
    return (difference - half, difference + half), 2 * float(student.sf(abs(difference) / error, freedom))


def holm(chances: Sequence[float]) -> list[float]:
    """The chances, corrected for being several: the k-th smallest of n times n - k + 1, and none below
    a smaller one's.
    """
    order = sorted(range(len(chances)), key=chances.__getitem__)
    raised = accumulate((min(1.0, chances[place] * (len(order) - k)) for k, place in enumerate(order)), max)
    return [value for _, value in sorted(zip(order, raised))]


def as_rich(found: Sequence[Comparison]) -> Table:
    """What a terminal shows."""
    counted = sum(one.p is not None for one in found)
    table = Table(
        Column('cell', overflow='fold'),
        'A',
        'B',
        'B - A',
        '95 % interval',
        'p',
        'verdict',
        title_justify='left',
        title=f"percent, mean ± std (seeds); Welch's t, p corrected for {counted} cells (Holm)",
    )
    for one in found:
        table.add_row(
            one.name,
            *(f'{cell.show(len(cell.done))} ({len(cell.done)})' for cell in (one.a, one.b)),
            '' if one.difference is None else f'{one.difference:+.2f}',
            '' if one.interval is None else '{:+.2f} … {:+.2f}'.format(*one.interval),
            '' if one.p is None else f'{one.p:.3f}',
            one.verdict,
        )
    return table


def _cells(results: Iterable[Result], by_suite: bool) -> dict[str, Cell]:
    found: dict[str, list[Result]] = {}
    for one in results:
        place = f'{one["suite"]}/' if by_suite else ''
        found.setdefault(f'{place}{one["dataset"]}.{one["backbone"]}.{one["tuner"]}', []).append(one)
    return {name: make_cell(own) for name, own in found.items()}


def _compare(name: str, a: Cell, b: Cell) -> Comparison:
    for side, cell in (('A', a), ('B', b)):
        if not cell.is_measured:
            return Comparison(name, a, b, verdict=f'not compared: {side} is {cell.state}')
    ours, theirs = a.done[0], b.done[0]
    for what, differ in (
        ('checkpoints', ours['backbone_sha256'] != theirs['backbone_sha256']),
        ('data', not same_data(ours['data'], theirs['data'])),
        ('metrics', metric(ours) != metric(theirs)),
    ):
        if differ:
            return Comparison(name, a, b, verdict=f'not compared: different {what}')
    if min(len(a.done), len(b.done)) < 2:
        return Comparison(name, a, b, b.mean - a.mean, verdict='one seed: cannot tell')
    return Comparison(name, a, b, b.mean - a.mean, *welch(a.percents, b.percents))


def _judged(found: list[Comparison]) -> list[Comparison]:
    chances = iter(holm([one.p for one in found if one.p is not None]))
    return [
        one
        if one.p is None
        else replace(one, p=(p := next(chances)), verdict='differs' if p < LEVEL else 'within seed noise')
        for one in found
    ]
