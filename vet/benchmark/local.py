"""Runs a suite's jobs on this machine: a process for each, so many at once, spread over the GPUs, with a live table."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.live import Live
from rich.table import Table

from vet.benchmark.results import read_result, write_result
from vet.benchmark.worker import Job, head
from vet.engine.progress import console


class Local:
    """jobs: processes at once, on each GPU or, without one, on the CPU, whose cores they share. gpus: their numbers."""

    def __init__(self, jobs: int = 1, gpus: Sequence[int] = ()):
        threads = max((os.cpu_count() or 1) // jobs, 1)
        self.slots = [dict(CUDA_VISIBLE_DEVICES=str(gpu)) for gpu in gpus] * jobs or [dict(OMP_NUM_THREADS=str(threads))] * jobs

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Makes the jobs. One whose process dies without a result is recorded as failed; the others go on."""
        waiting, free = list(jobs), list(range(len(self.slots)))
        running: dict[int, tuple[Job, subprocess.Popen, float]] = {}
        done: list[tuple[Job, str]] = []
        with Live(console=console, refresh_per_second=2) as live:
            try:
                while waiting or running:
                    while waiting and free:
                        job, slot = waiting.pop(0), free.pop(0)
                        running[slot] = job, self._start(job, slot), time.time()
                    for slot, (job, process, _) in list(running.items()):
                        if process.poll() is not None:
                            done.append((job, finished(job, process.returncode)))
                            del running[slot]
                            free.append(slot)
                    live.update(_table(done, [(job, time.time() - began) for job, _, began in running.values()], len(waiting)))
                    time.sleep(0.2)
            finally:
                for _, process, _ in running.values():
                    process.terminate()

    def _start(self, job: Job, slot: int) -> subprocess.Popen:
        path = job.write()
        with open(Path(job.work_dir) / 'worker.log', 'a') as log:
            return subprocess.Popen([sys.executable, '-m', 'vet.benchmark.worker', str(path)], stdout=log, stderr=log,
                                    env={**os.environ, **self.slots[slot]})


def finished(job: Job, returncode: int) -> str:
    """What came of a job whose process has ended: its test accuracy, or why there is none, which is then its result."""
    result = read_result(Path(job.result))
    if result is None or result['identity'] != job.identity:
        log = (Path(job.work_dir) / 'worker.log').read_text().strip().splitlines()
        how = f'killed by signal {-returncode}' if returncode < 0 else f'exit code {returncode}'
        result = head(job) | dict(status='failed', error=f'the process ended ({how}): {log[-1] if log else "it said nothing"}')
        write_result(Path(job.result), result)
    if result['status'] == 'failed':
        return f'failed: {result["error"]}'
    measured = result['metrics'] or dict(validation=result['validation'])
    return ', '.join(f'{name} {value:.4f}' for name, value in measured.items() if '/' not in name)


def _table(done: list[tuple[Job, str]], running: list[tuple[Job, float]], waiting: int) -> Table:
    table = Table('run', 'state', title=f'{len(done)} done, {len(running)} running, {waiting} waiting', title_justify='left')
    for job, outcome in done:
        table.add_row(job.run.name, outcome)
    for job, seconds in running:
        table.add_row(job.run.name, f'{seconds:.0f} s')
    return table
