"""Campaign: all runs of a suite, those already done left alone; grids first, on validation images, then the runs that count."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vet.benchmark.results import fingerprint, identity, is_done, read_result, read_results, result_path
from vet.benchmark.suite import Cell, Run, distinct
from vet.benchmark.worker import Job
from vet.builders import build_datasets
from vet.config import read_settings
from vet.errors import DataError, UserError
from vet.registry import BACKBONES

Launch = Callable[[Sequence[Job]], None]        # makes the jobs, wherever; returns when each has a result or has died


@dataclass
class Campaign:
    """What a suite needs: checked before the first run starts. launch: makes jobs, and returns when none is left to make."""

    cells: list[Cell]
    results: Path
    work_dir: Path
    data_root: str
    launch: Launch
    device: str | None = None
    _data: dict[str, dict[str, Any]] = field(default_factory=dict)      # fingerprints, by the dataset section as JSON
    _backbones: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)    # sha256 and warnings, likewise

    def check(self) -> None:
        """Builds every dataset and backbone once. DataError that names all that is missing, and what to put where."""
        runs, missing = [run for cell in self.cells for run in [*cell.searches(), *cell.runs()]], []
        for look, key in ((self._look_at_data, 'dataset'), (self._look_at_backbone, 'backbone')):
            for entry, run in distinct(runs, *(('dataset',) if key == 'dataset' else ('model', 'backbone'))):
                try:
                    look(entry, run)
                except UserError as error:
                    missing.append(f'{getattr(run, key)}: {error}')
        if missing:
            raise DataError(f'{len(missing)} of what the suite needs cannot be read; no run was started.\n' + '\n'.join(missing))

    def run(self) -> list[Run]:
        """Makes every search and every run that is not done; returns the runs that count."""
        searches = {cell: cell.searches() for cell in self.cells}
        self._make([run for found in searches.values() for run in found])
        chosen = {cell: self._best(found) for cell, found in searches.items()}
        runs = [run for cell in self.cells if chosen[cell] is not None for run in cell.runs(chosen[cell])]
        self._make(runs)
        return runs

    def plan(self) -> list[tuple[Run, bool]]:
        """Every run, and whether it is done; of a grid whose best is not known yet, at its first point."""
        planned = []
        for cell in self.cells:
            searches = cell.searches()
            done = [self.is_done(run) for run in searches]
            point = self._best(searches) if all(done) else cell.points[0]
            runs = cell.runs(point) if point is not None else []
            planned += [*zip(searches, done), *((run, all(done) and self.is_done(run)) for run in runs)]
        return planned

    def seconds(self, run: Run) -> float | None:
        """What the run may take: from the nearest measured run of its tuner and backbone, by images; None without one."""
        near = [result for result in read_results(self.results / run.suite) if result['status'] == 'done'
                and (result['tuner'], result['backbone']) == (run.tuner, run.backbone)]
        if not near:
            return None
        images = self._data[_key(run.config['dataset'])]['train']['images'] * run.config['train']['max_epochs']
        best = min(near, key=lambda result: (result['dataset'] != run.dataset,
                                             abs(result['train_images'] * result['epochs'] - images)))
        return best['wall_seconds'] * images / max(best['train_images'] * best['epochs'], 1)

    def is_done(self, run: Run) -> bool:
        return is_done(result_path(self.results, run), self.job(run).identity)

    def job(self, run: Run) -> Job:
        """The run with its identity and its places. Runs of another identity have other work folders."""
        data = self._data[_key(run.config['dataset'])]
        sha256, warnings = self._backbones[_key(run.config['model']['backbone'])]
        name = identity(run, data, sha256)
        return Job(run, name, data, sha256, str(result_path(self.results, run).absolute()),
                   str((self.work_dir / run.suite / f'{run.name}-{name[:8]}').absolute()), str(Path(self.data_root).absolute()),
                   self.device, warnings)

    def _make(self, runs: Iterable[Run]) -> None:
        jobs = [self.job(run) for run in runs if not self.is_done(run)]
        if jobs:
            self.launch(jobs)

    def _best(self, searches: list[Run]) -> dict[str, Any] | None:
        """The point of the best validation result; {} without a grid; None where every search failed."""
        if not searches:
            return {}
        found = [(result['validation'], run.point) for run in searches
                 if (result := read_result(result_path(self.results, run))) and result['status'] == 'done']
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def _look_at_data(self, entry: dict[str, Any], run: Run) -> None:
        datasets = build_datasets(read_settings(run.config), self.data_root)
        self._data[_key(entry)] = {split: fingerprint(dataset) for split, dataset in datasets.items() if dataset is not None}

    def _look_at_backbone(self, entry: dict[str, Any], run: Run) -> None:
        backbone = BACKBONES.build(entry)
        self._backbones[_key(entry)] = backbone.identity['sha256'], tuple(backbone.warnings())


def _key(entry: Any) -> str:
    return json.dumps(entry, sort_keys=True)
