"""Campaign: makes all runs of a suite, except the runs that are done.

First come the runs that search a grid, on validation images. Then come the runs that count.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from vet.benchmark.cells import is_lower_better
from vet.benchmark.results import (
    code_sha256,
    fingerprint,
    identity,
    images,
    is_done,
    read_result,
    read_results,
    result_path,
)
from vet.benchmark.suite import Place, Run, distinct
from vet.benchmark.timing import seconds_per_image
from vet.benchmark.worker import Job, shifted
from vet.builders import build_datasets
from vet.config import read_settings
from vet.errors import DataError, UserError
from vet.files import JsonObject, read_json, writing
from vet.lock import FileLock
from vet.log import warn
from vet.registry import BACKBONES

LOCK = '.lock'  # in the folder of a suite's results
# makes the jobs, or arranges that another program makes them; a job without a result is not made yet
Launch = Callable[[Sequence[Job]], None]


@dataclass
class Campaign:
    """The runs of a suite, and everything that they need. `check` checks all of it before the first run
    starts.

    launch: makes jobs.
    """

    cells: list[Place]
    results: Path
    work_dir: Path
    data_root: str
    launch: Launch
    device: str | None = None
    _data: dict[str, JsonObject] = field(default_factory=dict)  # by _data() as JSON: fingerprints
    # by the entry as JSON: sha256 and warnings
    _backbones: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    # by tuner and backbone: seconds per image
    _timed: dict[tuple[str, str], float | None] = field(default_factory=dict)

    def check(self) -> None:
        """Builds every dataset and backbone once.

        DataError, with everything that is missing, and how to provide it.
        """
        runs = self._all_runs()
        missing = []
        for look, entries in (
            (self._look_at_data, lambda run: [_data(run)]),
            (self._look_at_backbone, _backbones),
        ):
            for entry, run in distinct(runs, entries):
                try:
                    look(entry, run)
                except UserError as error:
                    missing.append(f'{run.dataset if look == self._look_at_data else run.backbone}: {error}')
        if missing := [*dict.fromkeys(missing), *self._mistaken(runs)]:
            raise DataError(
                f'{len(missing)} parts of the suite cannot be used; no run was started.\n'
                + '\n'.join(missing)
            )

    def run(self) -> list[Run]:
        """Makes every search and every run that is not done. Returns the runs that count.

        If all searches of a cell have failed, or some searches have no result yet, the runs of the cell are
        left out. The log says if a chosen number lies at the edge of its grid.
        UserError if another process makes one of these runs with another config, data, weights or code now.
        """
        with self._without_contradiction():
            return self._run()

    def _run(self) -> list[Run]:
        searches = {cell: cell.searches() for cell in self.cells}
        self._make([run for of_cell in searches.values() for run in of_cell])
        chosen = {cell: self._best(of_cell) for cell, of_cell in searches.items()}
        for cell, point in chosen.items():
            for key in cell.edges(point or {}):
                warn(cell.at_edge(key, (point or {})[key]))
        runs = [run for cell in self.cells if chosen[cell] is not None for run in cell.runs(chosen[cell])]
        self._make(runs)
        return runs

    def plan(self) -> list[tuple[Run, bool]]:
        """Every run, and whether the run is done.

        If a point of a grid has no result yet, the plan shows the runs of the cell at the grid's first point.
        """
        planned = []
        for cell in self.cells:
            searches = cell.searches()
            known = all(self._result(run) for run in searches)
            point = self._best(searches) if known else cell.points[0]
            runs = cell.runs(point) if point is not None else []
            planned += [
                *((run, self.is_done(run)) for run in searches),
                *((run, known and self.is_done(run)) for run in runs),
            ]
        return planned

    def seconds(self, run: Run) -> float | None:
        """An estimate of the run's time.

        It comes from the measured run of the same tuner and backbone with the nearest number of images.

        None: no such run was measured.
        """
        near = [
            result
            for result in self._measured
            if (result['tuner'], result['backbone']) == (run.tuner, run.backbone)
        ]
        if not near:
            return None
        images = self._images(run)
        best = min(
            near,
            key=lambda result: (
                result['dataset'] != run.dataset,
                abs(result['train_images'] * result['epochs'] - images),
            ),
        )
        return best['wall_seconds'] * images / max(best['train_images'] * best['epochs'], 1)

    def timed_seconds(self, run: Run) -> float | None:
        """An estimate of the training time, from a few steps made here.

        For each tuner and backbone, only the first run is timed.
        """
        key = run.tuner, _key(run.config['model']['backbone'])
        if key not in self._timed:
            self._timed[key] = seconds_per_image(run, self.data_root, self.device)
        rate = self._timed[key]
        return None if rate is None else rate * self._images(run)

    def is_done(self, run: Run) -> bool:
        return is_done(result_path(self.results, run), self.job(run).identity)

    def job(self, run: Run) -> Job:
        """The run with its identity and its folders.

        Runs of different identities have different work folders.
        """
        data = self._data[_key(_data(run))]
        backbones = [self._backbones[_key(entry)] for entry in _backbones(run)]
        sha256, warnings = backbones[0]
        suite = self.cells[0].suite
        name = identity(run, data, ' '.join(weights for weights, _ in backbones), suite.plugins)
        return Job(
            run,
            name,
            data,
            sha256,
            str(result_path(self.results, run).absolute()),
            str((self.work_dir / run.suite / f'{run.name}-{name[:8]}').absolute()),
            str(Path(self.data_root).absolute()),
            self.device,
            warnings,
            suite.path if suite.plugins else None,
            code_sha256(suite.plugins),
        )

    def _all_runs(self) -> list[Run]:
        return [run for cell in self.cells for run in [*cell.searches(), *cell.runs()]]

    @contextmanager
    def _without_contradiction(self) -> Iterator[None]:
        """Within this context, no other campaign replaces results of this campaign.

        The first campaign in a folder of results holds a lock, and writes its runs into the locked file.
        Another campaign may work there too, if both agree on the identity of each common run.
        """
        runs = self._all_runs()
        identities = {run.name: self.job(run).identity for run in runs}
        lock = FileLock(self.results / runs[0].suite / LOCK)
        with writing(lock.path):
            lock.path.parent.mkdir(parents=True, exist_ok=True)
            is_first = lock.acquire(wait=False)
        try:
            if is_first:
                with writing(lock.path):
                    lock.path.write_text(json.dumps(identities))
            else:
                others = _identities(lock.path)
                if wrong := [name for name in identities if others.get(name) not in (None, identities[name])]:
                    raise UserError(
                        f'another process makes the run {wrong[0]} in {str(self.results)!r} now, with '
                        'another config, or other data, weights or code. Wait until that process ends, or '
                        'give another --results.'
                    )
            yield
        finally:
            lock.release()

    def _make(self, runs: Iterable[Run]) -> None:
        jobs = [self.job(run) for run in runs if not self.is_done(run)]
        replaced = [job.run.name for job in jobs if _is_of_another(job)]
        if replaced:
            warn(
                f'{len(replaced)} results in {str(self.results)!r}, such as {replaced[0]}, are of another '
                'config, or of other data, weights or code. The new results replace them. To keep them, give '
                'another --results.'
            )
        if jobs:
            self.launch(jobs)

    def _best(self, searches: list[Run]) -> JsonObject | None:
        """The point with the best validation result; of equal results, the first. {}: there is no grid.

        None: every search failed, or a search has no result yet.
        """
        if not searches:
            return {}
        outcomes = [(self._result(run), run) for run in searches]
        judged = [
            (-result['validation'] if is_lower_better(result) else result['validation'], run.point)
            for result, run in outcomes
            if result and result['status'] == 'done'
        ]
        if not all(result for result, _ in outcomes):
            return None
        return max(judged, key=lambda pair: pair[0])[1] if judged else None

    def _result(self, run: Run) -> JsonObject | None:
        """The result of the run, which may be a failure.

        None: no result yet, or a result of another identity.
        """
        result = read_result(result_path(self.results, run))
        return result if result and result['identity'] == self.job(run).identity else None

    def _images(self, run: Run) -> int:
        """The number of images that training reads. For several tasks: the sum over the tasks."""
        return images(self._data[_key(_data(run))]['train']) * run.config['train']['max_epochs']

    @cached_property
    def _measured(self) -> list[JsonObject]:
        return [
            result
            for result in read_results(self.results / self.cells[0].suite.name)
            if result['status'] == 'done'
        ]

    def _mistaken(self, runs: Iterable[Run]) -> list[str]:
        """Messages for backbones of different names that have the same weights.

        Then the user gave all of them the checkpoint of one.
        """
        names: dict[str, dict[str, None]] = {}
        for _, run in distinct(runs, lambda run: [run.config['model']['backbone']]):
            entry = run.config['model']['backbone']
            if (key := _key(entry)) in self._backbones:
                names.setdefault(self._backbones[key][0], {})[entry.get('name') or entry['type']] = None
        return [
            f'{" and ".join(same)}: their weights are the same, of sha256 {sha256[:12]}…; give each '
            'backbone a separate checkpoint.'
            for sha256, same in names.items()
            if len(same) > 1
        ]

    def _look_at_data(self, entry: JsonObject, run: Run) -> None:
        datasets = build_datasets(read_settings(run.config), self.data_root)
        fingerprints = {
            split: fingerprint(dataset) for split, dataset in datasets.items() if dataset is not None
        }
        for split in ('train', 'val'):
            if 'test' in fingerprints and fingerprints.get(split) == fingerprints['test']:
                raise UserError(
                    f'dataset.{split} has the same images as dataset.test, which only the end result may '
                    'see; give another split.'
                )
        shifts = {name: shifted(run, name, datasets['train'], self.data_root) for name in run.shifts}
        if shifts:
            fingerprints['shifts'] = {name: fingerprint(dataset) for name, dataset in shifts.items()}
        self._data[_key(entry)] = fingerprints

    def _look_at_backbone(self, entry: JsonObject, run: Run) -> None:
        backbone = BACKBONES.build(entry)
        self._backbones[_key(entry)] = backbone.identity['sha256'], tuple(backbone.warnings())


def _data(run: Run) -> JsonObject:
    """The settings that decide which images a run trains on, selects by and is tested on."""
    config = run.config
    return dict(
        dataset=config['dataset'],
        select=config['evaluation']['select'] == 'best',
        holdout=config['evaluation']['holdout'],
        early_stop=bool(config['train']['early_stop']),
    ) | (dict(shifts=run.shifts) if run.shifts else {})


def _backbones(run: Run) -> list[JsonObject]:
    """The backbones of a run: the entry model.backbone, then the entries in its tuners, such as a side
    network.
    """
    model = run.config['model']
    names = set(BACKBONES.names())
    return [model['backbone'], *(entry for entry in _entries(model['tuners']) if entry.get('type') in names)]


def _entries(value: object) -> Iterator[JsonObject]:
    """All dicts within lists and dicts."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _entries(inner)


def _identities(path: Path) -> JsonObject:
    """The identities of the runs of a campaign that works now. Empty if they are not written yet."""
    try:
        return dict(read_json(path))
    except (DataError, TypeError, ValueError):
        return {}


def _is_of_another(job: Job) -> bool:
    """Whether the file of the result holds a result that was measured otherwise."""
    result = read_result(Path(job.result))
    return result is not None and result['status'] == 'done' and result['identity'] != job.identity


def _key(entry: object) -> str:
    return json.dumps(entry, sort_keys=True)
