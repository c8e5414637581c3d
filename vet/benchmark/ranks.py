"""Ranks of the tuners of a table, and the differences that are more than the noise of the seeds.

Friedman's test asks whether the mean ranks differ at all. Nemenyi's critical difference says how far apart
two mean ranks must be (Demšar 2006, "Statistical comparisons of classifiers over multiple data sets"). The
datasets are the units of both, so a few datasets tell little. Within a dataset, each tuner is compared with
the suite's baseline over the seeds, as `vet benchmark --compare` does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from vet.benchmark.cells import is_lower_better
from vet.benchmark.compare import LEVEL, Comparison, compare_cells, judged
from vet.benchmark.tables import Rows, Table


@dataclass(frozen=True)
class Ranking:
    """means: the mean rank of each tuner over the datasets; 1 is best.

    p: the chance of such mean ranks if all tuners are alike (Friedman). critical: the difference of two mean
    ranks from which they are told apart, at LEVEL (Nemenyi). None: there are too few tuners or datasets.
    """

    means: dict[str, float]
    datasets: int
    p: float | None = None
    critical: float | None = None


def ranking(scores: Mapping[str, Sequence[float]]) -> Ranking:
    """scores: a number for each dataset, by tuner. More is better. Equal numbers share their mean rank."""
    numbers = np.array(list(scores.values()))  # (tuners, datasets)
    tuners, datasets = numbers.shape
    ranks = rankdata(-numbers, axis=0)
    means = dict(zip(scores, ranks.mean(1).tolist()))
    if tuners < 3 or datasets < 2:
        return Ranking(means, datasets)
    p = float(friedmanchisquare(*numbers).pvalue) if np.ptp(ranks) else None  # undefined if all are tied
    q = float(studentized_range.ppf(1 - LEVEL, tuners, math.inf)) / math.sqrt(2)
    critical = q * math.sqrt(tuners * (tuners + 1) / (6 * datasets))
    return Ranking(means, datasets, p, critical)


def rank_table(table: Table) -> Ranking | None:
    """The ranking of the tuners that are measured on every dataset. None: fewer than two."""
    scores = {}
    for tuner in table.tuners:
        cells = [table.cells[tuner, dataset] for dataset in table.datasets]
        if all(cell.is_measured for cell in cells):
            scores[tuner] = [-cell.mean if is_lower_better(cell.done[0]) else cell.mean for cell in cells]
    return ranking(scores) if len(scores) > 1 else None


def differences(table: Table) -> dict[tuple[str, str], Comparison]:
    """How each tuner differs from the baseline, by tuner and dataset, corrected for all of them together."""
    if table.baseline not in table.tuners:
        return {}
    places = [
        (tuner, dataset)
        for tuner in table.tuners
        for dataset in table.datasets
        if tuner != table.baseline and table.cells[tuner, dataset].is_measured
    ]
    found = [
        compare_cells('.'.join(place), table.cells[table.baseline, place[1]], table.cells[place])
        for place in places
    ]
    return dict(zip(places, judged(found)))


def rank_rows(table: Table) -> Rows:
    """A row for each ranked tuner, the best first. []: there is no ranking.

    Ranks in one dataset say nothing about noise. They are shown only beside differences to a baseline.
    """
    found = rank_table(table)
    apart = differences(table)
    if found is None or (found.datasets == 1 and not apart):
        return []
    columns = [f'{dataset}, against {table.baseline}' for dataset in table.datasets] if apart else []
    rows = [['tuner', 'mean rank', *columns]]
    for tuner, rank in sorted(found.means.items(), key=lambda item: item[1]):
        shown = [verdict(apart.get((tuner, dataset))) for dataset in table.datasets] if apart else []
        rows.append([tuner, f'{rank:.2f}', *shown])
    return rows


def rank_notes(table: Table) -> list[str]:
    """The meaning of the ranks and of the differences, in one sentence each."""
    found = rank_table(table)
    apart = differences(table)
    if not rank_rows(table) or found is None:
        return []
    places = f'{found.datasets} datasets' if found.datasets > 1 else 'one dataset'
    notes = [f'Mean ranks of {len(found.means)} tuners over {places}; 1 is best.']
    if found.p is not None:
        notes.append(f"Friedman's test of equal ranks: p = {found.p:.3g}.")
    if found.critical is not None:
        notes.append(
            f'Two mean ranks that differ by less than {found.critical:.2f} are not told apart (Nemenyi, '
            f'{LEVEL:.0%}).'
        )
    counted = sum(comparison.p is not None for comparison in apart.values())
    if counted:
        notes.append(
            f'Differences to {table.baseline} are in percent points. "noise": the difference is within the '
            f"noise of the seeds (Welch's t, corrected for {counted} comparisons by Holm)."
        )
    return notes


def verdict(comparison: Comparison | None) -> str:
    """'+1.20 (better)', '-0.30 (noise)', or the reason why there is no verdict. '': the baseline."""
    if comparison is None:
        return ''
    if comparison.difference is None:
        return comparison.verdict
    if comparison.p is None:
        return f'{comparison.difference:+.2f} ({comparison.verdict})'
    is_better = (comparison.difference > 0) != is_lower_better(comparison.a.done[0])
    word = 'better' if is_better else 'worse'
    if comparison.p >= LEVEL:
        word = 'noise'
    return f'{comparison.difference:+.2f} ({word})'
