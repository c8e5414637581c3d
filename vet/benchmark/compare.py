"""Compares two sets of results: is the difference of two means larger than the noise of the seeds?

The test is Welch's t of the two means over seeds, which does not need equal variances. Runs are not paired by
seed. One seed gives two tuners the same batches. But the same batches may help one tuner and harm the other.
With three seeds, pairing would leave 2 degrees of freedom in place of up to 4. If a seed does help both,
Welch's t errs to the safe side. p and the verdict are corrected for the number of compared cells (Holm 1979).
The 95 % interval of a cell is not corrected. If nothing differs, the chance that at least one verdict is
'differs' is 5 %.
If the seeds of both cells have no noise at all, any difference counts.
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
    """The comparison of one cell.

    difference: mean(b) - mean(a) in percent points.
    interval: the 95 % interval of the difference.
    p: the chance of such a difference by noise alone.
    None: cannot be computed.
    """

    name: str
    a: Cell
    b: Cell
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    verdict: str = ''  # or the reason why there is none


def compare(a: Sequence[Result], b: Sequence[Result]) -> list[Comparison]:
    """Compares every cell that both sides have, in the order of `a`.

    If a side has several suites, cells are compared suite by suite.
    """
    by_suite = _has_several_suites(a) or _has_several_suites(b)
    ours, theirs = _cells(a, by_suite), _cells(b, by_suite)
    return judged([compare_cells(name, ours[name], theirs[name]) for name in ours if name in theirs])


def _has_several_suites(results: Sequence[Result]) -> bool:
    return len({result['suite'] for result in results}) > 1


def read_side(place: str) -> list[Result]:
    """The whole results in a folder, in the folders of its suites, or in the files that fit a pattern.

    DataError if there is none, or if a run is there twice: two copies would count as two seeds.
    """
    path = Path(place)
    results = read_results(path) or [
        result for folder in sorted(path.glob('*')) for result in read_results(folder)
    ]
    results = results or [
        result for file in sorted(glob(place)) if (result := read_named(Path(file))) is not None
    ]
    if not results:
        raise DataError(
            f'{place!r} has no whole result; give a folder of results, a folder of a suite, or a quoted '
            "pattern of files, such as 'benchmarks/results/fgvc/*.lora.*.json'."
        )
    [(run, count)] = Counter((result['suite'], run_name(result)) for result in results).most_common(1)
    if count > 1:
        raise DataError(
            f'{place!r} has {count} results of one run, {run[1]} of {run[0]}; give the folder of only one.'
        )
    return results


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[tuple[float, float], float]:
    """The 95 % interval of mean(b) - mean(a), and the chance of such a difference by noise alone."""
    difference = statistics.fmean(b) - statistics.fmean(a)
    variances = [statistics.variance(values) / len(values) for values in (a, b)]
    error = sum(variances) ** 0.5
    if error == 0:
        return (difference, difference), float(difference == 0)
    freedom = sum(variances) ** 2 / sum(
        variance**2 / (len(values) - 1) for variance, values in zip(variances, (a, b))
    )
    half = float(student.ppf(1 - LEVEL / 2, freedom)) * error
    return (difference - half, difference + half), 2 * float(student.sf(abs(difference) / error, freedom))


def holm(chances: Sequence[float]) -> list[float]:
    """The chances, corrected for their number n by Holm's method.

    The k-th smallest chance becomes n - k + 1 times as large, and at least as large as the chances before it.
    """
    order = sorted(range(len(chances)), key=chances.__getitem__)
    raised = accumulate((min(1.0, chances[place] * (len(order) - k)) for k, place in enumerate(order)), max)
    return [value for _, value in sorted(zip(order, raised))]


def as_rich(comparisons: Sequence[Comparison]) -> Table:
    """The comparisons as a table for a terminal."""
    counted = sum(comparison.p is not None for comparison in comparisons)
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
    for comparison in comparisons:
        table.add_row(
            comparison.name,
            *(f'{cell.show(len(cell.done))} ({len(cell.done)})' for cell in (comparison.a, comparison.b)),
            '' if comparison.difference is None else f'{comparison.difference:+.2f}',
            '' if comparison.interval is None else '{:+.2f} … {:+.2f}'.format(*comparison.interval),
            '' if comparison.p is None else f'{comparison.p:.3f}',
            comparison.verdict,
        )
    return table


def _cells(results: Iterable[Result], by_suite: bool) -> dict[str, Cell]:
    by_name: dict[str, list[Result]] = {}
    for result in results:
        place = f'{result["suite"]}/' if by_suite else ''
        by_name.setdefault(f'{place}{result["dataset"]}.{result["backbone"]}.{result["tuner"]}', []).append(
            result
        )
    return {name: make_cell(of_cell) for name, of_cell in by_name.items()}


def compare_cells(name: str, a: Cell, b: Cell) -> Comparison:
    """How b differs from a, without a correction and a verdict for several comparisons, see `judged`."""
    for side, cell in (('A', a), ('B', b)):
        if not cell.is_measured:
            return Comparison(name, a, b, verdict=f'not compared: {side} is {cell.state}')
    ours, theirs = a.done[0], b.done[0]
    for subject, differ in (
        ('checkpoints', ours['backbone_sha256'] != theirs['backbone_sha256']),
        ('data', not same_data(ours['data'], theirs['data'])),
        ('metrics', metric(ours) != metric(theirs)),
    ):
        if differ:
            return Comparison(name, a, b, verdict=f'not compared: different {subject}')
    if min(len(a.done), len(b.done)) < 2:
        return Comparison(name, a, b, b.mean - a.mean, verdict='one seed: cannot tell')
    return Comparison(name, a, b, b.mean - a.mean, *welch(a.percents, b.percents))


def judged(comparisons: list[Comparison]) -> list[Comparison]:
    """The comparisons with their verdicts. p is corrected for their number."""
    chances = iter(holm([comparison.p for comparison in comparisons if comparison.p is not None]))
    judged = []
    for comparison in comparisons:
        if comparison.p is not None:
            chance = next(chances)
            verdict = 'differs' if chance < LEVEL else 'within seed noise'
            comparison = replace(comparison, p=chance, verdict=verdict)
        judged.append(comparison)
    return judged
