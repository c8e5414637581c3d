"""Cells: the results of one dataset, backbone and tuner, over all seeds.

A number is a mean over seeds with its sample standard deviation (n - 1), in percent. The number is of the
metric that the run names first.
"""

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

from vet.benchmark.suite import Run
from vet.files import JsonObject

Result = JsonObject  # the content of a result file
COSTS: dict[str, tuple[Callable[[Result], float], str]] = {  # name: (how to read the cost, its format)
    'parameters without head': (
        lambda result: result['parameters']['trainable'] - result['parameters']['head'],
        ',.0f',
    ),
    'with head': (lambda result: result['parameters']['trainable'], ',.0f'),
    'file, bytes': (lambda result: result['file_bytes'], ',.0f'),
    'peak memory, MiB': (lambda result: result['peak_memory_mb'], ',.0f'),
    'training images/s': (lambda result: result['images_per_second'], ',.0f'),
    'wall time, s': (lambda result: result['wall_seconds'], ',.1f'),
    'epochs': (lambda result: result['epochs'], 'g'),
}


@dataclass(frozen=True)
class Cell:
    """done: results that count, of any seeds. failed: results without a number."""

    done: tuple[Result, ...] = ()
    failed: tuple[Result, ...] = ()
    is_earlier: bool = False  # the results are of an earlier config of the suite

    @property
    def state(self) -> str:
        """'measured', or the reason why there is no number.

        Runs must differ only in their seed to have a mean.
        """
        kinds = {
            exact([{**result['config'], 'seed': None}, result['data'], result['backbone_sha256']])
            for result in self.done
        }
        if len(kinds) > 1:
            return f'seeds of {len(kinds)} configs'
        if kinds:
            return 'measured'
        return 'failed' if self.failed else 'not measured'

    @property
    def is_measured(self) -> bool:
        return self.state == 'measured'

    @property
    def percents(self) -> list[float]:
        return [100 * result['metrics'][metric(result)] for result in self.done]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.percents)

    @property
    def std(self) -> float | None:
        """The sample standard deviation. None for one seed."""
        return statistics.stdev(self.percents) if len(self.done) > 1 else None

    @property
    def others(self) -> dict[str, str]:
        """The further metrics that every run has: {name: 'mean ± deviation'}, in the units of the metric."""
        names = [name for name in self.done[0]['metrics'] if name != metric(self.done[0])]
        shown = {}
        for name in names:
            values = [result['metrics'][name] for result in self.done if name in result['metrics']]
            if len(values) == len(self.done):
                spread = f' ± {statistics.stdev(values):.4g}' if len(values) > 1 else ''
                shown[name] = f'{statistics.fmean(values):.4g}{spread}'
        return shown

    @property
    def point(self) -> str:
        """The point that a search chose: 'train.optimizer.lr=0.01'."""
        return ', '.join(f'{key}={value}' for key, value in self.done[0]['point'].items())

    def cost(self, name: str) -> float:
        """The mean over seeds of a cost in COSTS."""
        return statistics.fmean(COSTS[name][0](result) for result in self.done)

    def show(self, seeds: int) -> str:
        """'93.20 ± 0.41', with the number of seeds if this is not `seeds`. Without a number: the state."""
        if not self.is_measured:
            return self.state
        count = len(self.done)
        asides = []
        if count != seeds:
            asides.append(f'{count} of {seeds} seeds' if count < seeds else f'{count} seeds')
        if self.failed:
            asides.append(f'{len(self.failed)} failed')
        if self.is_earlier:
            asides.append('of an earlier config')
        return (
            f'{self.mean:.2f}'
            + ('' if self.std is None else f' ± {self.std:.2f}')
            + (f' ({", ".join(asides)})' if asides else '')
        )


def make_cell(results: Iterable[Result], is_earlier: Callable[[Result], bool] = lambda result: False) -> Cell:
    """The cell of all its results. Searches do not count. If all searches failed, the cell has failed."""
    results = list(results)
    searches = [result for result in results if result['is_search']]
    runs = [result for result in results if not result['is_search']]
    done = tuple(result for result in runs if result['status'] == 'done')
    if not runs and searches and len(failures(searches)) == len(searches):
        return Cell(failed=tuple(searches))
    return Cell(done, tuple(failures(runs)), any(map(is_earlier, done)))


def metric(result: Result) -> str:
    """The name of the metric of a result's number: the first metric.

    For several tasks, it is the mean over tasks.
    """
    return next(iter(result['metrics']))


def is_lower_better(result: Result) -> bool:
    """Whether less of the result's metric is better. Results of before 0.2 do not say so: more is better."""
    return bool(result.get('lower_is_better'))


def run_name(result: Result) -> str:
    """The name of a result's run and file: 'flowers.vitb16.lora.seed0'."""
    return Run(**{field.name: result[field.name] for field in fields(Run) if field.name in result}).name


def failures(results: Iterable[Result]) -> list[Result]:
    return [result for result in results if result['status'] == 'failed']


def exact(value: object) -> str:
    """A text that is equal only for equal plain values."""
    return json.dumps(value, sort_keys=True)
