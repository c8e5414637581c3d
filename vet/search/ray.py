"""Tries several candidates at once on a Ray cluster: one task for each trial. Needs the extra `ray`.

The tasks and this process share Optuna's journal, so Optuna suggests, judges and stops trials as without Ray.
The folder of the search, the data and the weights must lie under the same paths on all machines. Each machine
needs vet.
"""

import os
import time

from optuna.trial import Trial, TrialState

from vet.errors import error_text
from vet.log import say
from vet.ray_cluster import join_cluster, needs_ray
from vet.search.candidates import Candidate
from vet.search.search import Ended, Search
from vet.source import find_config

LOST = 'lost'  # the attribute of a trial that is tried again: the reason


def run_on_ray(search: Search, seconds: float) -> None:
    """Tries candidates for about `seconds` in all, as many at once as the cluster has GPUs, else CPUs.

    The cluster: see join_cluster. If a task is lost, the trial of the task is tried once more.
    """
    with needs_ray(otherwise='leave --launcher out'):
        import ray
    gpus = join_cluster(search.place.get('device'))
    slots = gpus or max(1, int(ray.cluster_resources().get('CPU', 1)))
    task = ray.remote(num_cpus=1, num_gpus=min(1, gpus), max_retries=0)(_attempt)
    ends = search.ends(seconds, slots)
    running: dict[ray.ObjectRef, tuple[Trial, bool]] = {}  # and whether the trial is trained in whole
    try:
        while True:
            while len(running) < slots and search.goes_on(ends, len(running)):
                trial = search.study.ask()
                whole = not any(search.whole()) and not any(each for _, each in running.values())
                left = None if whole else max(0.0, ends - time.monotonic())
                reference = task.remote(search, trial, *search.suggested(trial), left, os.getcwd())
                running[reference] = trial, whole
            if not running:
                return
            for reference in ray.wait(list(running))[0]:
                trial, _ = running.pop(reference)
                try:
                    ended = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:
                    reason = error_text(error)
                    ended = Ended(TrialState.FAIL, None, f'trial {trial.number} is lost: {reason}')
                    if LOST not in trial.user_attrs:
                        search.study.enqueue_trial(trial.params, {LOST: reason})
                say(ended.says)
                search.study.tell(trial.number, ended.value, ended.state)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _attempt(
    search: Search, trial: Trial, candidate: Candidate, rate: float, left: float | None, folder: str
) -> Ended:
    os.chdir(folder)
    if search.source:
        find_config(search.source)
    return search.attempt(trial, candidate, rate, None if left is None else time.monotonic() + left)
