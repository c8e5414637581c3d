"""The contract of a hook: code of a user at chosen points of a training, in mmengine's manner.

A run calls the points in this order:

    before_run
        before_train_epoch
            before_train_iter, after_train_iter                    for each optimizer step
        after_train_epoch
        before_val_epoch, after_val_epoch                          if the epoch is validated
    before_test_epoch, after_test_epoch                            once, with the weights that are saved
    after_run

A run without validation images validates no epoch, as in mmengine. A run without test images is not tested.
vet warns of a hook that waits for such images.

Each point gets the run as `runner` (vet/hooks/runner.py: Runner). A hook reads `runner.epoch`, `runner.iter`
and `runner.model`, and calls `runner.log(name=number)`, `runner.stop()` and `runner.save()`.
"""

from collections.abc import Mapping, Sequence

from vet.hooks.runner import Runner, State


class Hook:
    """The base class of hooks. A hook writes the points that it needs, with the arguments that it needs.

    A class without this base is a hook too, if its points have these names. With several processes, each
    process calls its own hook.
    """

    def before_run(self, runner: Runner) -> None:
        """Before the first step of a process. A resumed run calls this again."""

    def after_run(self, runner: Runner) -> None:
        """After the last test and after the model folder is written. `runner.summary` has the results."""

    def before_train_epoch(self, runner: Runner) -> None:
        """Before the first step of an epoch."""

    def after_train_epoch(self, runner: Runner) -> None:
        """After the last step of an epoch, before the validation."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Sequence[object]) -> None:
        """Before an optimizer step.

        batch_idx: the number of the step in the epoch, from 0. data_batch: the batches of the step in this
        process, train.accumulate of them, each with `images` (B, 3, H, W) and `labels`.
        """

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Sequence[object], outputs: Mapping[str, object]
    ) -> None:
        """After an optimizer step. outputs: 'loss', the mean over this process's images of the step, as a
        tensor without gradient; 'lr', the learning rate of the tuners.
        """

    def before_val_epoch(self, runner: Runner) -> None:
        """Before a validation. After a signal in a validation, the resumed run calls this again."""

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        """After a validation. metrics: {'accuracy': 0..1, …}."""

    def before_test_epoch(self, runner: Runner) -> None:
        """Before the test. `runner.model` has the weights that are saved."""

    def after_test_epoch(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        """After the test, before the model folder is written. metrics: {'accuracy': 0..1, …}."""

    def state_dict(self) -> State:
        """The state that this hook needs in a resumed run, as values of JSON. A checkpoint holds it."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Restores `state_dict`, before `before_run`."""
