"""Suite: the runs of a benchmark - backbones x tuners x datasets x seeds - read from one config file.

A suite file is a config. `train` and `evaluation` come from a recipe by `_base_`. In place of model and
dataset, the file has these keys:

    backbones = {name: an entry of model.backbone}
    tuners = {name: the entries of model.tuners, or dict(tuners=…, head=…, options=…, grid=…)}
    datasets = {name: dict(train=…, val=…, test=…, group=…, options=…, search=dict(train=…, val=…), shifts=…)}
        search: the splits of the runs that search a grid
        shifts: {name: a dataset}, further test sets of the same classes, on which a run is measured at its
            end
    seeds = [0, 1, 2]
    options = {'train.optimizer.lr': 1e-3}
        changes to every run's config; the options of a tuner and of a dataset are applied after these
    grid = {'train.optimizer.lr': [1e-3, 1e-2]}
        values to choose from, on validation images alone
    baseline = 'lora'
        the tuner with which the tables compare each tuner
"""

import ast
import difflib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from vet.changes import modified
from vet.config import load_config, read_settings
from vet.errors import UnknownNameError, UserError
from vet.files import JsonObject
from vet.mmengine_parts import Config
from vet.shipped import find_file

KEYS = ('backbones', 'tuners', 'datasets', 'seeds', 'options', 'grid', 'head', 'baseline')
TUNER_KEYS = ('tuners', 'head', 'options', 'grid')
SECTIONS = ('model', 'dataset', 'train', 'evaluation')  # sections of a config, which a recipe may have
DATASET_KEYS = ('train', 'val', 'test', 'group', 'options', 'search', 'shifts')


@dataclass(frozen=True)
class Run:
    """One training of a suite.

    config: complete and checked, as plain values. point: the point of the grid that was chosen, or that is
        tried.
    """

    suite: str
    dataset: str
    backbone: str
    tuner: str
    seed: int
    config: JsonObject
    point: JsonObject = field(default_factory=dict)
    is_search: bool = False  # judges `point` on validation images; reads no test image
    group: str = ''  # of the dataset, for means over groups
    shifts: JsonObject = field(default_factory=dict)  # further test sets by name

    @property
    def name(self) -> str:
        """'flowers.vitb16.lora.seed0'; a search adds its point.

        Unique in the suite, and usable as a file name.
        """
        point = hashlib.sha256(json.dumps(self.point, sort_keys=True).encode()).hexdigest()[:6]
        parts = self.dataset, self.backbone, self.tuner, f'seed{self.seed}'
        return '.'.join((*parts, f'search-{point}') if self.is_search else parts)


@dataclass(frozen=True)
class Place:
    """The place of a cell in the table: a dataset, a backbone and a tuner."""

    suite: 'Suite'
    dataset: str
    backbone: str
    tuner: str

    @property
    def grid(self) -> dict[str, list[object]]:
        """The values that a search tries, by key. {}: there is no search."""
        return self.suite.tuners[self.tuner].get('grid', self.suite.grid)

    @property
    def points(self) -> list[JsonObject]:
        """The points that the grid tries. []: there is no grid."""
        values = itertools.product(*self.grid.values())
        return [dict(zip(self.grid, point)) for point in values] if self.grid else []

    def edges(self, point: Mapping[str, object]) -> list[str]:
        """The keys whose number in `point` is the smallest or the largest that the grid has."""
        keys = []
        for key, values in self.grid.items():
            numbers = [value for value in values if isinstance(value, int | float)]
            is_scale = len(numbers) == len(values) > 1
            if is_scale and point.get(key) in (min(numbers), max(numbers)):
                keys.append(key)
        return keys

    def at_edge(self, key: str, value: object) -> str:
        """The sentence about a chosen value at the edge of its grid."""
        return (
            f'{self.dataset}, {self.backbone}, {self.tuner}: the best {key} is {value}, at the edge of the '
            f'grid {self.grid[key]}. A wider grid may give a better result.'
        )

    def searches(self) -> list[Run]:
        """One run for each point, with the first seed, judged only on validation images."""
        return [self._run(self.suite.seeds[0], point, is_search=True) for point in self.points]

    def runs(self, point: Mapping[str, object] | None = None) -> list[Run]:
        """One run for each seed, at the chosen point."""
        return [self._run(seed, dict(point or {})) for seed in self.suite.seeds]

    def config(self, point: Mapping[str, object]) -> JsonObject:
        """The config of the suite at a point, with the first seed."""
        return self._run(self.suite.seeds[0], dict(point)).config

    def _run(self, seed: int, point: JsonObject, is_search: bool = False) -> Run:
        suite = self.suite
        tuner = self.suite.tuners[self.tuner]
        dataset = self.suite.datasets[self.dataset]
        splits = dataset | dataset.get('search', {}) if is_search else dataset
        config = Config(
            dict(
                model=dict(
                    backbone=suite.backbones[self.backbone],
                    tuners=tuner['tuners'],
                    head=tuner.get('head', suite.head),
                ),
                dataset={split: splits.get(split) for split in ('train', 'val', 'test')},
                **suite.sections,
                seed=seed,
            )
        )
        options = {**suite.options, **tuner.get('options', {}), **dataset.get('options', {}), **point}
        if is_search:
            options |= {'evaluation.select': 'best', 'evaluation.before': False}
        config = modified(config, None, options)
        if is_search:
            config.dataset.test = None  # even if the options give a test split
        settings = read_settings(config)
        return Run(
            suite.name,
            self.dataset,
            self.backbone,
            self.tuner,
            seed,
            settings.to_dict(),
            point,
            is_search,
            dataset.get('group', ''),
            {} if is_search else dataset.get('shifts', {}),
        )


@dataclass(frozen=True, eq=False)
class Suite:
    name: str
    title: str  # the first line of the file's docstring
    backbones: dict[str, JsonObject]
    tuners: dict[str, JsonObject]
    datasets: dict[str, JsonObject]
    seeds: list[int]
    options: JsonObject
    grid: dict[str, list[object]]
    head: JsonObject
    sections: JsonObject  # train and evaluation, from the recipe
    path: str = ''  # of the file
    plugins: tuple[str, ...] = ()  # the modules that its custom_imports name
    baseline: str = ''  # the tuner with which the tables compare the others; '': none

    def cells(self, only: str = '*') -> list[Place]:
        """Every place of the table whose 'dataset.backbone.tuner' fits the pattern.

        UserError if no place fits.
        """
        places = [
            Place(self, *names)
            for names in itertools.product(self.datasets, self.backbones, self.tuners)
            if fnmatchcase('.'.join(names), only)
        ]
        if not places:
            raise UserError(
                f'--only {only!r} fits none of the runs; they are named dataset.backbone.tuner, with the '
                f'datasets {list(self.datasets)}, backbones {list(self.backbones)} and tuners '
                f'{list(self.tuners)}.'
            )
        return places


def load_suite(path: str | Path, options: Mapping[str, object] | None = None) -> Suite:
    """The suite of a file. options: changes to every run's config, or to `seeds`.

    UserError if the file cannot be read.
    """
    path = find_file(path, 'suites')
    config = load_config(path)
    options = dict(options or {})
    for key in config:  # other keys are helper variables of the file, or sections
        if key not in KEYS and key not in SECTIONS and difflib.get_close_matches(key, KEYS, n=1, cutoff=0.75):
            raise UnknownNameError('key of a suite', key, KEYS)
    for key in ('backbones', 'tuners', 'datasets'):
        if not isinstance(config.get(key), Mapping) or not config[key]:
            raise UserError(f'the suite {str(path)!r} lacks {key}; give a dict of names and their entries.')
    plain = {key: Config({key: config[key]}).to_dict()[key] for key in KEYS if key in config}
    tuners = {
        name: entry if isinstance(entry, dict) else dict(tuners=entry)
        for name, entry in plain['tuners'].items()
    }
    for kind, entries, allowed in (
        ('tuner', tuners, TUNER_KEYS),
        ('dataset', plain['datasets'], DATASET_KEYS),
    ):
        for name, entry in entries.items():
            for key in entry:
                if key not in allowed:
                    raise UnknownNameError(f'key of the {kind} {name!r} in a suite', key, allowed)
    for name, entry in plain['datasets'].items():
        for key in entry.get('search', {}):
            if key not in ('train', 'val'):
                raise UnknownNameError(
                    f'split of the searches of the dataset {name!r} in a suite', key, ('train', 'val')
                )
        for shift, of_shift in entry.get('shifts', {}).items():
            if shift in ('train', 'val', 'test') or not isinstance(of_shift, Mapping):
                raise UserError(
                    f'the dataset {name!r} in a suite has the shift {shift!r}: {of_shift!r}; give another '
                    'name than train, val and test, and a dataset, such as dict(type="ImageFolder", path=…).'
                )
        if not entry.get('test'):
            raise UserError(
                f'the dataset {name!r} in a suite has no test; give a test split, on whose images no run '
                'trains.'
            )
    for name in itertools.chain(plain['backbones'], tuners, plain['datasets']):
        if not str(name).replace('_', '').replace('-', '').isalnum():
            raise UserError(
                f'the name {name!r} in a suite is no part of a file name; allowed: letters, digits, _ and -.'
            )
    baseline = plain.get('baseline', '')
    if baseline and baseline not in tuners:
        raise UnknownNameError('baseline of a suite', baseline, tuners)
    imports = config.get('custom_imports', {}).get('imports', [])
    seeds = options.pop('seeds', plain.get('seeds', [0]))
    if (
        not isinstance(seeds, list)
        or not seeds
        or any(type(seed) is not int for seed in seeds)
        or len(set(seeds)) < len(seeds)
    ):
        raise UserError(
            f'seeds is {seeds!r}; it must be a list of different whole numbers, such as [0, 1, 2].'
        )
    sections = {key: config[key] for key in ('train', 'evaluation') if key in config}
    title = (
        (ast.get_docstring(ast.parse(Path(path).read_text())) or '').partition('\n')[0]
        if Path(path).suffix == '.py'
        else ''
    )
    return Suite(
        Path(path).stem,
        title,
        plain['backbones'],
        tuners,
        plain['datasets'],
        seeds,
        {**plain.get('options', {}), **options},
        plain.get('grid', {}),
        plain.get('head', dict(type='Linear')),
        sections,
        str(Path(path).absolute()),
        tuple([imports] if isinstance(imports, str) else imports),
        baseline,
    )


def distinct(
    runs: Iterable[Run], entries: Callable[[Run], Iterable[JsonObject]]
) -> Iterator[tuple[JsonObject, Run]]:
    """The different entries of runs, each with the first run that has it."""
    seen = set()
    for run in runs:
        for entry in entries(run):
            if (text := json.dumps(entry, sort_keys=True)) not in seen:
                seen.add(text)
                yield entry, run
