"""Tables of a suite from its result files: one table per backbone checkpoint.

Published numbers stand below the measured numbers.
"""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from vet.benchmark.cells import COSTS, Cell, Result, exact, make_cell, metric
from vet.benchmark.references import Reference, find
from vet.benchmark.results import images
from vet.benchmark.suite import Place, Suite
from vet.datasets.vtab import GROUPS
from vet.errors import UserError
from vet.files import JsonObject

Rows = list[list[str]]  # the first row is the header
# the origin of weights, and the words for it
ORIGINS = {'name': '', 'file': ' (weights of a file)', 'random': ' (random weights)'}
# the datasets of ModelScope's model cards
CARDS = {'cifar100', 'cub200', 'nabirds', 'flowers102', 'stanford_cars', 'stanford_dogs'}
EARLIER = ', of an earlier config'
SELECTED = {'last': 'The last epoch counts.', 'best': 'The epoch that is best on validation images counts.'}


@dataclass(frozen=True)
class Table:
    """The results of one checkpoint.

    If a name of the suite stands for two checkpoints, or for two sets of data, each gets a separate label.
    """

    name: str  # of the backbone in the suite
    label: str  # the name, with '(1 of 2)' if two checkpoints have the name
    checkpoint: str  # the name in the references
    origin: str  # of the weights: one of ORIGINS
    sha256: str  # of the weights; '' if nothing was measured
    tuners: list[str]
    datasets: dict[str, str]  # label: the suite's name
    groups: dict[str, str]  # label: group, or ''
    cells: dict[tuple[str, str], Cell]  # by tuner and label of the dataset
    seeds: int  # the number of seeds in the suite
    baseline: str = ''  # the tuner with which the others are compared; '': none
    edges: tuple[str, ...] = ()  # sentences about chosen values at the edge of their grid

    @property
    def title(self) -> str:
        return self.label + ORIGINS[self.origin]

    @property
    def published(self) -> str:
        """The name of a row of references.

        References are of the checkpoint's name. A file under this name may hold other weights.
        """
        sha256 = f', sha256 {self.sha256[:12]}…' if self.sha256 else ''
        return (
            'published'
            if self.origin == 'name'
            else f"published (of {self.checkpoint}; the weights here are a file's{sha256})"
        )

    @property
    def done(self) -> list[Result]:
        return [result for cell in self.cells.values() for result in cell.done]

    @property
    def means(self) -> dict[str, list[list[str]]]:
        """The columns of means: {column: parts}. A part is a list of datasets, and counts by its mean.

        One column is over all datasets. If every dataset has a group, another column is over the groups.
        There are no columns of means in two cases: if a dataset has several columns, because the dataset
        would count twice, and if metrics differ.
        """
        if (
            len(set(self.datasets.values())) < len(self.datasets)
            or len({metric(result) for result in self.done}) > 1
        ):
            return {}
        names = list(dict.fromkeys(self.groups.values()))
        columns = {f'mean of {len(self.datasets)} datasets': [[dataset] for dataset in self.datasets]}
        if all(names):
            groups: dict[str, list[str]] = {name: [] for name in names}
            for dataset, name in self.groups.items():
                groups[name].append(dataset)
            columns[f'mean of {len(names)} groups'] = list(groups.values())
        return {name: parts for name, parts in columns.items() if len(parts) > 1}

    def mean(self, tuner: str, parts: list[list[str]]) -> float | None:
        """The mean over `parts`, see `means`. None unless every dataset is measured."""
        if not all(self.cells[tuner, dataset].is_measured for dataset in self.datasets):
            return None
        means = []
        for group in parts:
            means.append(statistics.fmean(self.cells[tuner, dataset].mean for dataset in group))
        return statistics.fmean(means)

    def references(self, tuner: str, column: str) -> list[Reference]:
        """The published numbers of a tuner in a column: a dataset's label, or a name in `means`.

        Random weights have no published numbers.
        """
        if self.origin == 'random':
            return []
        names = [self.datasets[column]] if column in self.datasets else [_published_mean(self, column)]
        return [reference for name in names for reference in find(name, self.checkpoint, tuner)]

    def sources(self) -> list[str]:
        """The sources of published values. accuracy() numbers them, from 1."""
        columns = [*self.datasets, *self.means]
        return list(
            dict.fromkeys(
                source(reference)
                for tuner in self.tuners
                for key in columns
                for reference in self.references(tuner, key)
            )
        )

    def accuracy(self) -> Rows:
        """A row for each tuner, and below it a row of published numbers."""
        columns = [*self.datasets, *self.means]
        sources = self.sources()
        rows = [['tuner', *columns]]
        for tuner in self.tuners:
            means = [self.mean(tuner, parts) for parts in self.means.values()]
            rows.append(
                [
                    tuner,
                    *(self.cells[tuner, dataset].show(self.seeds) for dataset in self.datasets),
                    *('not measured' if mean is None else f'{mean:.2f}' for mean in means),
                ]
            )
            published = [self._published(tuner, column, sources) for column in columns]
            rows += [[self.published, *published]] if any(published) else []
        return rows

    def _published(self, tuner: str, column: str, sources: list[str]) -> str:
        """The published numbers of a tuner in a column, each with the number of its source."""
        return ', '.join(
            f'{reference.value:.2f} [{sources.index(source(reference)) + 1}]'
            for reference in self.references(tuner, column)
        )

    def costs(self) -> Rows:
        """A row for each measured tuner: means over seeds. A range is over the datasets."""
        asked = ['chosen by search'] if any(result['point'] for result in self.done) else []
        rows = [['tuner', *COSTS, *asked]]
        for tuner in self.tuners:
            cells = {
                dataset: cell for dataset in self.datasets if (cell := self.cells[tuner, dataset]).is_measured
            }
            if cells:
                points = {cell.point for cell in cells.values()}
                chosen = '; '.join(f'{dataset}: {cell.point}' for dataset, cell in cells.items())
                if len(points) == 1:
                    [chosen] = points
                row = [tuner]
                for name, (_, form) in COSTS.items():
                    row.append(_range([cell.cost(name) for cell in cells.values()], form))
                rows.append([*row, chosen] if asked else row)
        return rows

    def others(self) -> Rows:
        """A row for each measured tuner and dataset: the metrics beside the first. []: there are none."""
        found = {}
        for tuner in self.tuners:
            for dataset in self.datasets:
                cell = self.cells[tuner, dataset]
                found[tuner, dataset] = cell.others if cell.is_measured else {}
        names = list(dict.fromkeys(name for shown in found.values() for name in shown))
        rows = []
        for (tuner, dataset), shown in found.items():
            if shown:
                rows.append([tuner, dataset, *(shown.get(name, '') for name in names)])
        return [['tuner', 'dataset', *names], *rows] if rows else []

    def notes(self) -> list[str]:
        """Facts that readers need to understand the numbers, one sentence each."""
        versions = sorted({_version(result) for result in self.done})
        weights = f', weights of sha256 {self.sha256}.' if self.sha256 else '; nothing was measured.'
        notes = [f'Checkpoint: {self.checkpoint}{ORIGINS[self.origin]}{weights}']
        if self.label != self.name:
            notes.append(f'{self.name} has results of several checkpoints: a table for each.')
        for shown, name in self.datasets.items():
            if shown != name:
                notes.append(f'{name} has results of different images: a column each.')
        notes += [SELECTED[result['config']['evaluation']['select']] for result in self.done]
        for dataset in self.datasets:
            found = [result for tuner in self.tuners for result in self.cells[tuner, dataset].done]
            if found:
                notes.append(f'{dataset}: {_describe(found)}')
        notes += [_machine(result['environment']) for result in self.done]
        if len(versions) > 1:
            notes.append(f'From {len(versions)} versions of the code: {", ".join(versions)}.')
        notes += [*self.edges, *(f'Warning: {text}' for result in self.done for text in result['warnings'])]
        return list(dict.fromkeys(notes))


def make_tables(results: Sequence[Result], suite: Suite) -> list[Table]:
    """The tables of results, in the order of the suite. Places of the suite without a result are included."""
    backbones = _labels(
        suite.backbones, [(result['backbone'], result['backbone_sha256']) for result in results]
    )
    tables = []
    for (name, sha256), label in backbones.items():
        of_backbone = [r for r in results if (r['backbone'], r['backbone_sha256']) == (name, sha256)]
        tables.append(_table(label, name, sha256, of_backbone, suite))
    return tables


def source(reference: Reference) -> str:
    """'VPT, arXiv:2203.12119; recipe vpt2022; split train / test'."""
    note = f'; {reference.note}' if reference.note else ''
    return f'{reference.source}; recipe {reference.recipe}; split {reference.split}{note}'


def _table(label: str, name: str, sha256: str, results: list[Result], suite: Suite) -> Table:
    entry = results[0]['config']['model']['backbone'] if results else suite.backbones[name]
    tuners = list(dict.fromkeys([*suite.tuners, *(result['tuner'] for result in results)]))
    counting = [result for result in results if not result['is_search']]
    datasets = _labels(suite.datasets, [(result['dataset'], exact(result['data'])) for result in counting])
    groups = {key: value.get('group', '') for key, value in suite.datasets.items()}
    groups |= {result['dataset']: result['group'] for result in results}
    cells = {}
    for tuner in tuners:
        for (key, data), shown in datasets.items():
            of_place = [r for r in results if (r['tuner'], r['dataset']) == (tuner, key)]
            of_cell = [r for r in of_place if r['is_search'] or exact(r['data']) == data]
            cells[tuner, shown] = make_cell(of_cell, lambda result: _is_earlier(result, suite))
    if entry.get('checkpoint'):
        origin = 'file'
    else:
        origin = 'random' if entry.get('pretrained') is False else 'name'
    return Table(
        name,
        label,
        entry.get('name') or entry['type'],
        origin,
        sha256,
        tuners,
        {shown: key for (key, _), shown in datasets.items()},
        {shown: groups[key] for (key, _), shown in datasets.items()},
        cells,
        len(suite.seeds),
        suite.baseline,
        tuple(sentence for result in counting for sentence in edge_sentences(result, suite)),
    )


def edge_sentences(result: Result, suite: Suite) -> list[str]:
    """A sentence for each number of the result's point that lies at the edge of its grid."""
    point = result['point']
    if result['tuner'] not in suite.tuners or not point:
        return []
    place = Place(suite, result['dataset'], result['backbone'], result['tuner'])
    return [place.at_edge(key, point[key]) for key in place.edges(point)]


def _is_earlier(result: Result, suite: Suite) -> bool:
    """Whether the suite's file has another config now. The seed, and the point of a grid, do not count."""
    names = result['dataset'], result['backbone'], result['tuner']
    known = all(
        name in entries for name, entries in zip(names, (suite.datasets, suite.backbones, suite.tuners))
    )
    return (
        bool(suite.path)
        and known
        and _asked(Place(suite, *names), exact(result['point'])) != _seedless(result['config'])
    )


@cache
def _asked(place: Place, point: str) -> str | None:
    """_seedless of the suite's config at a point. None: the suite does not have this point any more."""
    try:
        return _seedless(place.config(json.loads(point)))
    except UserError:
        return None


def _seedless(config: JsonObject) -> str:
    return exact({**config, 'seed': None})


def _labels(names: Iterable[str], found: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """A label for each (name, thing): the name.

    If a name stands for several things, the label has a number too.
    """
    meant: dict[str, list[str]] = {name: [] for name in names}
    for name, thing in dict.fromkeys(found):
        meant.setdefault(name, []).append(thing)
    return {
        (name, thing): name if len(things) < 2 else f'{name} ({number} of {len(things)})'
        for name, things in meant.items()
        for number, thing in enumerate(things or [''], 1)
    }


def _published_mean(table: Table, column: str) -> str:
    """The name of a mean in the references: ModelScope's six datasets, or VTAB-1k over its tasks or groups.

    '' if the references have no such mean.
    """
    tasks = {table.datasets[key]: group for key, group in table.groups.items()}
    if set(tasks) == CARDS and len(table.means[column]) == len(CARDS):
        return 'cards_mean6'
    if tasks != {task: group for group, tasks in GROUPS.items() for task in tasks}:
        return ''
    return 'vtab_mean3' if column == f'mean of {len(GROUPS)} groups' else 'vtab_mean19'


def _describe(results: Sequence[Result]) -> str:
    """A sentence about one dataset: the metric, and the number of images in each split."""
    names = ', '.join(dict.fromkeys(metric(result) for result in results))
    return (
        f'{names}; '
        + ', '.join(f'{images(facts):,} {split} images' for split, facts in results[0]['data'].items())
        + '.'
    )


def _machine(environment: JsonObject) -> str:
    packages = ', '.join(f'{name} {version}' for name, version in environment['packages'].items())
    return (
        f'Measured on {environment["device"]}, {environment["cores"]} cores, threads: '
        f'{environment["threads"]}; vet {environment["vet"]}, Python {environment["python"]}, {packages}.'
    )


def _version(result: Result) -> str:
    """The version of the code: its hash. If the result does not hold the hash: the git revision."""
    environment = result['environment']
    revision = (environment['git_revision'] or f'vet {environment["vet"]}')[:12]
    return result.get('code', '')[:12] or revision + (' with changes' if environment['git_changes'] else '')


def _range(values: Sequence[float], form: str) -> str:
    return ' … '.join(dict.fromkeys(format(value, form) for value in (min(values), max(values))))
