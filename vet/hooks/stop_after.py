"""Stops a run after some time, so that the model folder is written before a cluster ends the job."""

import time
from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Interval

from vet.hooks.base import Hook
from vet.hooks.runner import Runner, State
from vet.registry import HOOKS


@HOOKS.register_module()
class StopAfter(Hook):
    """Stops the training after some minutes, which include validations. The run ends as after its last step.

    A resumed run counts the minutes of the earlier processes too, up to the checkpoint.

    minutes: above 0. The step at which a run stops depends on the machine.
    """

    def __init__(self, minutes: Annotated[float, Interval(gt=0, le=1e6)]):
        self.minutes = minutes
        self._before = 0.0  # seconds of earlier processes
        self._began = time.monotonic()

    def before_run(self, runner: Runner) -> None:
        self._began = time.monotonic()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Sequence[object], outputs: Mapping[str, object]
    ) -> None:
        if self._seconds() >= 60 * self.minutes:
            runner.stop()

    def state_dict(self) -> State:
        return dict(seconds=self._seconds())

    def load_state_dict(self, state: State) -> None:
        self._before = state['seconds']

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began
