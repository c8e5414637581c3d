"""Runs a suite's jobs on a Ray cluster: one task per job. Ray chooses the machines. Needs the extra `ray`.

Results and work folders must lie in a folder that all machines share under the same path. The same holds for
datasets and weights. Each machine needs vet.
"""

import os
from collections.abc import Mapping, Sequence

from rich.live import Live

from vet.benchmark.local import table
from vet.benchmark.worker import Job, bury, outcome, work
from vet.errors import error_text
from vet.log import console, show_log
from vet.ray_cluster import join_cluster, needs_ray


class Ray:
    """resources: of each task, as ray.remote takes them: num_gpus, num_cpus, memory, …

    Without num_gpus, a task gets one GPU, if the cluster has GPUs.
    The cluster: see join_cluster.
    """

    def __init__(self, resources: Mapping[str, object] | None = None):
        with needs_ray(otherwise='choose --launcher local or slurm'):
            import ray
        self.ray = ray
        self.resources = dict(resources or {})

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Makes the jobs. If a task is lost, its job is recorded as failed. The other jobs continue."""
        ray = self.ray
        resources = dict(num_gpus=min(1, join_cluster(jobs[0].device))) | self.resources
        # one process per job, so that peak memory is that of the job; a later campaign makes the second
        # attempt
        task = ray.remote(**resources, max_calls=1, max_retries=0)(_task)
        done: list[tuple[Job, str]] = []
        running = {task.remote(job, os.getcwd()): job for job in jobs}
        with Live(console=console, refresh_per_second=2) as live:
            try:
                while running:
                    ended, _ = ray.wait(list(running), timeout=0.5)
                    for reference in ended:
                        job = running.pop(reference)
                        try:
                            ray.get(reference)
                        except ray.exceptions.RayError as error:
                            bury(job, error_text(error))
                        done.append((job, outcome(job)))
                    live.update(table(f'{len(done)} done, {len(running)} given to Ray', done))
            finally:
                for reference in running:
                    ray.cancel(reference, force=True)


def _task(job: Job, folder: str) -> None:
    os.chdir(folder)
    show_log()
    work(job)
