"""Worker: makes one run of a suite and writes its result, in a separate process. So the peak memory of
the process is that of the run alone.

    python -m vet.benchmark.worker JOB.json
"""

import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from vet.benchmark.results import is_done, read_result, write_result
from vet.benchmark.suite import Run
from vet.builders import build_dataset, build_trainer, check_classes, names_of
from vet.config import load_config
from vet.datasets.base import follow_models
from vet.engine.evaluate import is_lower_better, metric_name
from vet.engine.run import MEASURED
from vet.engine.saving.door import read_log
from vet.engine.trainer import Trainer
from vet.environment import describe
from vet.errors import DivergedError, UserError
from vet.files import JsonObject, write_file
from vet.lock import FileLock
from vet.log import show_log

# in the work folder: the start of the newest attempt, and the seconds of earlier attempts
ATTEMPT = 'attempt.json'
LOG = 'worker.log'  # in the work folder: what a process that works apart has said


@dataclass(frozen=True)
class Job:
    """A run, and everything that a process needs to make the run, as JSON."""

    run: Run
    identity: str
    data: JsonObject  # the fingerprint of each split
    backbone_sha256: str  # of its weights
    result: str  # the file to write
    work_dir: str
    data_root: str
    device: str | None = None
    warnings: tuple[str, ...] = ()
    suite_file: str | None = None  # a suite file that imports plugins, which the process must import too
    code: str = ''  # the sha256 of vet's source and of these plugins

    def write(self) -> Path:
        """Writes the job into its work folder. Returns the file."""
        path = Path(self.work_dir) / 'job.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(asdict(self)))
        return path

    @classmethod
    def read(cls, path: str | Path) -> 'Job':
        values = json.loads(Path(path).read_text())
        return cls(**{**values, 'run': Run(**values['run']), 'warnings': tuple(values['warnings'])})


def work(job: Job) -> None:
    """Makes the run and writes its result. A failure is a result too.

    If the run was begun before, it continues from its newest checkpoint. Its wall time is the sum of all
    attempts. A second process with the same run waits for the first process, and then finds the run done.
    """
    with _alone(job):
        if is_done(Path(job.result), job.identity):
            return
        began = time.time()
        earlier = _earlier(job)
        write_file(Path(job.work_dir) / ATTEMPT, json.dumps(dict(began=began, earlier=earlier)))
        try:
            measured = dict(status='done', **_train(job))
        except Exception as error:
            traceback.print_exc()
            message = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
            measured = dict(status='failed', error=message, diverged=isinstance(error, DivergedError))
        write_result(
            Path(job.result), head(job) | measured | dict(wall_seconds=earlier + time.time() - began)
        )


def work_apart(path: str, environment: Mapping[str, str]) -> None:
    """`work` for the job in a file, in a process that multiprocessing has started.

    The process ends with its parent. The process writes its messages into worker.log. A signal of the
    terminal reaches only the parent, and the parent sends SIGTERM once. A second signal would stop the run
    before the run is saved.
    """
    if hasattr(os, 'setsid'):  # not on Windows
        os.setsid()
    log = os.open(Path(path).with_name(LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(environment)
    if 'OMP_NUM_THREADS' in environment:  # torch has read the variable when it was imported
        torch.set_num_threads(int(environment['OMP_NUM_THREADS']))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    show_log()
    work(Job.read(path))


def bury(job: Job, how: str) -> None:
    """Records the end of a process that wrote no result.

    If another process has made the run, nothing is recorded.
    """
    log = Path(job.work_dir) / LOG
    lines = log.read_text(errors='replace').strip().splitlines() if log.exists() else []
    with _alone(job):
        if not is_done(Path(job.result), job.identity):
            error = f'the process ended ({how}): {lines[-1] if lines else "it said nothing"}'
            write_result(Path(job.result), head(job) | dict(status='failed', error=error))


def outcome(job: Job) -> str:
    """The outcome of a job in words: its test accuracy, or the reason why there is none."""
    result = read_result(Path(job.result))
    if result is None or result['identity'] != job.identity:
        return 'no result'
    if result['status'] == 'failed':
        return f'failed: {result["error"]}'
    measured = result['metrics'] or dict(validation=result['validation'])
    return ', '.join(f'{name} {value:.4f}' for name, value in measured.items() if '/' not in name)


def head(job: Job) -> JsonObject:
    """The part of a result that is known before the run."""
    return asdict(job.run) | dict(
        identity=job.identity,
        data=job.data,
        backbone_sha256=job.backbone_sha256,
        code=job.code,
        warnings=list(job.warnings),
    )


def _train(job: Job) -> JsonObject:
    if job.suite_file:
        load_config(job.suite_file)
    folder = Path(job.work_dir) / 'run'
    trainer = build_trainer(
        model=job.run.config, work_dir=folder, resume='auto', device=job.device, data_root=job.data_root
    )
    trainer.how_to_go_on = None  # the suite goes on as a whole
    summary = trainer.train()
    environment = describe(trainer.accelerator.device)
    names = [] if job.run.is_search else _names(summary, trainer.metrics)
    metrics = {name: summary[name] for name in names} | _on_shifts(trainer, job)
    return dict(
        metrics=metrics,
        lower_is_better=is_lower_better(trainer.metrics),
        **{name: summary[name] for name in MEASURED},
        file_bytes=summary['output_bytes'],
        images_per_second=summary['train_images'] * summary['epochs'] / max(summary['train_seconds'], 1e-9),
        curves=read_log(folder),
        environment=environment,
        class_names=trainer.model.classes,
        **_by_class(folder / 'predictions.npz'),
    )


def shifted(run: Run, name: str, like: object, data_root: str) -> Any:
    """A further test set of a run. UserError if the set has other classes than the dataset `like`."""
    dataset = build_dataset(run.shifts[name], data_root)
    check_classes(names_of(dataset), names_of(like), f'shifts.{name}', 'dataset.train')
    return dataset


def _on_shifts(trainer: Trainer, job: Job) -> JsonObject:
    """{'shifts/accuracy': the mean over the further test sets, 'NAME/accuracy': …}. {}: there are none."""
    found: dict[str, dict[str, float]] = {}
    for name in job.run.shifts:
        dataset = shifted(job.run, name, trainer.data['train'], job.data_root)
        follow_models(dataset, trainer.model.tasks)
        trainer.data[name] = dataset
        measured = trainer.evaluate(name)
        for metric in _names(measured, trainer.metrics):
            found.setdefault(metric, {})[name] = measured[metric]
    means = {f'shifts/{metric}': fmean(of_metric.values()) for metric, of_metric in found.items()}
    return means | {
        f'{name}/{metric}': value for metric, of_metric in found.items() for name, value in of_metric.items()
    }


def _names(summary: JsonObject, metrics: Iterable[str]) -> list[str]:
    """The names of the metrics in a summary, with the metrics of single tasks."""
    wanted = set(map(metric_name, metrics))
    return [name for name in summary if name.rpartition('/')[2].partition('.')[0] in wanted]


def _by_class(path: Path) -> JsonObject:
    """The accuracy of each class, and the wrong answers as [truth, answer, count]. {} for models of several
    tasks.
    """
    if not path.exists():
        return {}
    with np.load(path) as predictions:
        truth = predictions['labels']
        given = predictions['given']
    pairs, counts = np.unique(np.stack([truth, given], 1)[truth != given], axis=0, return_counts=True)
    right, all_ = np.bincount(truth[truth == given], minlength=truth.max() + 1), np.bincount(truth)
    return dict(
        per_class=(right / np.maximum(all_, 1)).tolist(),
        images_by_class=all_.tolist(),
        confusion=np.column_stack([pairs, counts]).tolist(),
    )


def _earlier(job: Job) -> float:
    """The seconds of earlier attempts.

    Each is counted until it last wrote a file, because a killed process says no end.
    """
    attempt = Path(job.work_dir) / ATTEMPT
    if not attempt.exists():
        return 0.0
    last = json.loads(attempt.read_text())
    written = (path.stat().st_mtime for path in (Path(job.work_dir) / 'run').rglob('*'))
    return last['earlier'] + max(0.0, max(written, default=0.0) - last['began'])


@contextmanager
def _alone(job: Job) -> Iterator[None]:
    """Within this context, no other process works at the job.

    The lock ends with the process, however it ends.
    """
    folder = Path(job.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / 'lock').held():
        yield


def _end_with_parent() -> None:
    """Ends this process after its parent.

    If it went on, it would hold a GPU, and could overwrite the result of a later campaign with another
    config.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


if __name__ == '__main__':
    show_log()
    work(Job.read(sys.argv[1]))
