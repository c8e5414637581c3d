"""Runs a suite's jobs on this machine: one process per job, spread over the GPUs, with a live table.

All processes share one start of Python and its imports: they are forks of a server, which runs nothing else.
So the peak memory of a process is that of the job alone.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

import torch
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from vet.benchmark.worker import Job, bury, outcome, work_apart
from vet.errors import UserError
from vet.log import console

if sys.platform == 'win32':  # Windows has no fork: each process imports everything again
    STARTS = multiprocessing.get_context('spawn')
else:
    STARTS = multiprocessing.get_context('forkserver')
    STARTS.set_forkserver_preload(['timm', 'vet.benchmark.worker'])


class Local:
    """jobs: the number of processes at once, on each GPU. Without a GPU: on the CPU, whose cores they share.

    gpus: the numbers of GPUs, as torch counts them. If CUDA_VISIBLE_DEVICES lists GPUs, the numbers are
        places in that list.
    """

    def __init__(self, jobs: int = 1, gpus: Sequence[int] = ()):
        if jobs < 1:
            raise UserError(f'--jobs is {jobs}; it must be at least 1.')
        wrong = [gpu for gpu in gpus if not 0 <= gpu < torch.cuda.device_count()]
        if wrong:
            raise UserError(
                f'--gpus has {wrong[0]}, but there are {torch.cuda.device_count()} GPUs, numbered from 0.'
            )
        visible = [name for name in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if name]
        threads = max((os.cpu_count() or 1) // jobs, 1)
        self.slots = [
            dict(CUDA_VISIBLE_DEVICES=visible[gpu] if visible else str(gpu)) for gpu in gpus
        ] * jobs or [dict(OMP_NUM_THREADS=str(threads))] * jobs

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Makes the jobs.

        If a process dies without a result, its job is recorded as failed. The others continue.
        """
        waiting, free = list(jobs), list(range(len(self.slots)))
        running: dict[int, tuple[Job, BaseProcess, float]] = {}
        done: list[tuple[Job, str]] = []
        with Live(console=console, refresh_per_second=2) as live:
            try:
                while waiting or running:
                    while waiting and free:
                        job, slot = waiting.pop(0), free.pop(0)
                        running[slot] = job, self._start(job, slot), time.time()
                    for slot, (job, process, _) in list(running.items()):
                        if process.exitcode is not None:
                            if process.exitcode:
                                bury(job, how(process.exitcode))
                            done.append((job, outcome(job)))
                            del running[slot]
                            free.append(slot)
                    live.update(
                        table(
                            f'{len(done)} done, {len(running)} running, {len(waiting)} waiting',
                            done,
                            [(job, began) for job, _, began in running.values()],
                        )
                    )
                    time.sleep(0.2)
            finally:
                for _, process, _ in running.values():
                    process.terminate()

    def _start(self, job: Job, slot: int) -> BaseProcess:
        process = STARTS.Process(target=work_apart, args=(str(job.write()), self.slots[slot]))
        process.start()
        return process


def how(exitcode: int) -> str:
    return f'killed by signal {-exitcode}' if exitcode < 0 else f'exit code {exitcode}'


def table(title: str, done: Sequence[tuple[Job, str]], running: Sequence[tuple[Job, float]] = ()) -> Table:
    """A table of finished jobs with their outcomes, and of running jobs with their start (time.time())."""
    shown = Table('run', 'state', title=title, title_justify='left')
    for job, result in done:
        shown.add_row(job.run.name, escape(result))
    for job, began in running:
        shown.add_row(job.run.name, f'{time.time() - began:.0f} s')
    return shown
