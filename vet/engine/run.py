"""Run: one training, from the first step or a checkpoint to the summary and the model folder.

trainer.py makes a run for each call of `train`. vet/benchmark reads the names of the summary's entries.
"""

import math
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator

from vet.config import Settings
from vet.core.coverage import report
from vet.core.head import FittedHead, StartedHead
from vet.core.multitask import Classifier
from vet.datasets.base import Datasets, missing_classes
from vet.engine.feed.door import Batch, Feed, Order, Transforms, refuse_unfit_views
from vet.engine.judge import Judge, Scored
from vet.engine.learner import Learner, losses_on
from vet.engine.meter import Meter
from vet.engine.saving.door import (
    Log,
    Progress,
    Trackers,
    WorkFolder,
    identity_of,
    on_main,
    peak_memory_mb,
    require_trackers,
    share,
    try_saving,
    write_outcome,
)
from vet.engine.stop import Stop, StopRequested
from vet.environment import describe
from vet.errors import DivergedError, TrainingError
from vet.files import JsonObject
from vet.hooks.runner import Hooks
from vet.log import say, warn
from vet.progress import ProgressBar
from vet.seeding import seed_everything

# the entries of a summary that a benchmark records too, beside the metrics
MEASURED = tuple(
    'before validation selected epochs steps train_images parameters train_seconds peak_memory_mb'.split()
)
SUMMARY = (*MEASURED, 'calibration', 'seed', 'work_dir', 'output', 'output_bytes')  # all beside the metrics


@dataclass
class Run:
    """Trains `model`. The fields are those of the Trainer.

    augment: the transform of training of each task.
    """

    model: Classifier
    data: Datasets
    settings: Settings
    folder: WorkFolder
    accelerator: Accelerator
    feed: Feed
    judge: Judge
    hooks: Hooks
    augment: Transforms
    save_output: Callable[[Classifier, Path, JsonObject], None]
    is_prepared: bool
    how_to_go_on: object | None
    _best: dict[str, torch.Tensor] | None = field(default=None, init=False)  # weights of the best epoch

    def train(self) -> tuple[JsonObject | None, Stop]:
        """The summary, and the watch over signals. None after a signal; then the run is saved."""
        settings = self.settings
        accelerator = self.accelerator
        train = settings.train
        is_main = accelerator.is_main_process
        require_trackers(train.trackers)
        for key, views in (('train.transform', self.augment), ('evaluation.transform', self.judge.views)):
            refuse_unfit_views(self.model, self.data['train'], key, views, accelerator)
        self.judge.refuse_unfit(SUMMARY)
        losses = losses_on(self.data['train'], self.model, train, accelerator.device)
        checkpoint, self.folder.path = on_main(accelerator, self._begin)
        progress, parts = self.folder.load(checkpoint, settings)
        order = self.feed.order()
        if parts and progress.processes != accelerator.num_processes:
            raise TrainingError(
                f'the run was begun with {progress.processes} processes, which share each batch; continue '
                f'with the same number of processes (given: {accelerator.num_processes}).'
            )
        progress.processes = accelerator.num_processes
        self.feed.keep_images()
        if not parts:
            self._prepare_tuners(order)
        self.feed.keep_features(self.model)
        if not parts and not self.is_prepared:
            self._fit_heads()
        if not parts and settings.evaluation.before and self.feed.has('test'):
            progress.before = self.judge.measure('test')
        features = self.feed.features('train', self.augment)
        part = features.net if features else None
        routes = progress.routes or {} if parts else None  # a run of an older vet took the rule
        learner = Learner(self.model, train, order, accelerator, progress.step, part, losses, routes)
        if is_main:
            self._tell_coverage()
        with ExitStack() as closing:
            closing.callback(learner.close)
            if parts:
                learner.restore(parts, progress.step)
                self._best = parts.get('best')
            log = closing.enter_context(self._log(progress, bool(parts))) if is_main else None
            self._begin_hooks(progress, order, log)
            with (
                Stop(accelerator) as stop,
                ProgressBar(train.max_epochs * order.steps, progress.step, is_main) as bar,
            ):
                self._epochs(learner, progress, log, bar, stop)
            learner.close()
            if stop.number:
                self._tell_of(stop, progress)
                return None, stop
            learner.keep(self._best or learner.weights())
            return self._finish(progress, order, log), stop
        raise AssertionError  # mypy: an ExitStack may hide errors

    def _prepare_tuners(self, order: Order) -> None:
        """Lets the tuners see training images. A model that was trained before keeps its tuners."""
        seed_everything(self.settings.seed, 'prepare')
        for task, classifier in self.model.tasks.items() if not self.is_prepared else ():
            for tuner in classifier.tuners:
                tuner.prepare(
                    (batch.images, batch.labels)
                    for batch in self.feed.batches(order, 0, self.augment)
                    if batch.task == task
                )
        # each process may have prepared from other images
        share(self.accelerator, self.model.trained_state())

    def _fit_heads(self) -> None:
        """Computes the heads in closed form from the training images, as evaluation sees them."""
        for task, model in self.model.tasks.items():
            if isinstance(model.head, StartedHead):
                model.head.refuse_no_start()
            if isinstance(model.head, FittedHead):
                features, targets = map(torch.from_numpy, self.judge.training_features(task))
                model.head.refuse_features(features)
                model.head.fit(features, model.objective.coded(targets))
                share(self.accelerator, model.head.state_dict())  # processors may round differently

    def _log(self, progress: Progress, is_resumed: bool) -> Log:
        trackers = self.settings.train.trackers
        path = self.folder.path
        tracking = Trackers(trackers, path, self.settings.to_dict(), is_resumed) if trackers else None
        return Log(path, progress.step, progress.log_bytes, tracking)

    def _begin_hooks(self, progress: Progress, order: Order, log: Log | None) -> None:
        """Tells the hooks where the run stands, and calls the first point."""
        runner = self.hooks.runner
        runner.work_dir = self.folder.path
        runner.max_iters = self.settings.train.max_epochs * order.steps
        runner.iter = progress.step
        runner.epoch = progress.step // order.steps
        if log:
            runner.record = lambda **values: log.write(runner.iter, epoch=runner.epoch, **values)
        self.hooks.restore(progress.hooks)
        missing = [split for split in ('val', 'test') if not self.feed.has(split)]
        for text in self.hooks.uncalled(missing) if self.accelerator.is_main_process else ():
            warn(f'warning: {text}')
        self.hooks.call('before_run')

    def _begin(self) -> tuple[Path | None, Path]:
        """Prepares the work folder, and tries the end of the run.

        Returns the checkpoint to continue, and the folder.
        """
        environment = describe(self.accelerator.device) | dict(command=sys.argv)
        checkpoint = self.folder.begin(self.settings, identity_of(self.model, self.data), environment)
        try_saving(self.model, self.settings, self.folder.path, self.save_output)
        return checkpoint, self.folder.path

    def _tell_coverage(self) -> None:
        """Prints which share of the network the tuners reach. Warns of small shares and missing classes."""
        lines, shortfalls = report(self.model.tuners)
        lines += filter(None, (classifier.objective.told for classifier in self.model.tasks.values()))
        for line in lines:
            say(line)
        for text in [*shortfalls, *missing_classes(self.data['train'])]:
            warnings.warn(text, stacklevel=2)

    def _tell_of(self, stop: Stop, progress: Progress) -> None:
        if self.accelerator.is_main_process and self.how_to_go_on is not None:
            warn(f'{stop.name}: the run is saved after step {progress.step}. To go on: {self.how_to_go_on}')

    def _epochs(
        self, learner: Learner, progress: Progress, log: Log | None, bar: ProgressBar, stop: Stop
    ) -> None:
        """Takes all remaining steps, or stops at a signal."""
        train = self.settings.train
        order = learner.order
        batches = self.feed.batches(order, progress.step, self.augment)
        meter = Meter(self.accelerator.device)
        last = train.max_epochs * order.steps
        meter.restore(progress.meter, self.accelerator.is_main_process)
        saves_at = train.checkpoint
        is_asked = False
        while not is_asked and (progress.pending or (progress.step < last and not progress.stopped)):
            saves = False
            if not progress.pending:
                began = time.perf_counter()
                of_step = list(islice(batches, order.step_batches(progress.step)))
                lr = self._step(learner, of_step, progress, meter)
                progress.train_seconds += time.perf_counter() - began
                saves = saves_at.every_steps is not None and progress.step % saves_at.every_steps == 0
                if saves or progress.pending or progress.step % train.log_every == 0:
                    self._record(meter, math.ceil(progress.step / order.steps), lr, progress, log, bar)
            is_asked = stop.is_asked()
            saves |= self._heard_hooks(progress)
            if progress.pending and not is_asked:
                epoch = progress.step // order.steps
                try:
                    self._end_epoch(learner, epoch, progress, meter, log, bar, stop)
                except StopRequested:
                    is_asked = True
                else:
                    progress.pending = False
                    saves |= self._heard_hooks(progress)
                    saves |= epoch % saves_at.every_epochs == 0 or progress.step == last or progress.stopped
            if saves or is_asked:
                self._save(learner, progress, meter, log)
                meter.restart_clock()

    def _step(self, learner: Learner, batches: list[Batch], progress: Progress, meter: Meter) -> float:
        """Takes one step, with the points of the hooks around the step. Returns the learning rate."""
        hooks = self.hooks
        steps = learner.order.steps
        number = progress.step % steps
        if number == 0:
            hooks.call('before_train_epoch')
        hooks.call('before_train_iter', batch_idx=number, data_batch=batches)
        before = meter.sums()
        lr = learner.step(batches, progress.step, meter)
        progress.step += 1
        progress.pending = progress.step % steps == 0
        hooks.runner.iter = progress.step
        hooks.runner.epoch = progress.step // steps
        if hooks:
            loss, _, images = meter.sums() - before
            outputs = dict(loss=loss / images.clamp(min=1), lr=lr)
            hooks.call('after_train_iter', batch_idx=number, data_batch=batches, outputs=outputs)
        if progress.pending:
            hooks.call('after_train_epoch')
        return lr

    def _heard_hooks(self, progress: Progress) -> bool:
        """Notes that a hook wants to stop. Returns whether a checkpoint is due."""
        progress.stopped |= self.hooks.asked('stop')
        return self.hooks.asked('save') or progress.stopped

    def _record(
        self, meter: Meter, epoch: int, lr: float, progress: Progress, log: Log | None, bar: ProgressBar
    ) -> None:
        loss, watched, rate = meter.read(self.accelerator)
        self._refuse_diverged(progress, loss, lr)
        bar.update(
            progress.step, f'epoch {epoch}/{self.settings.train.max_epochs}', self._told_means(loss, watched)
        )
        if log:
            log.write(
                progress.step,
                epoch=epoch,
                loss=loss,
                **({self._watched: watched} if self._watched else {}),
                lr=lr,
                images_per_second=rate,
                memory_mb=peak_memory_mb(self.accelerator.device),
            )

    def _refuse_diverged(self, progress: Progress, loss: float, lr: float) -> None:
        broken = [name for name, value in self.model.trained_state().items() if not value.isfinite().all()]
        if broken or not math.isfinite(loss):
            raise DivergedError(
                f'at step {progress.step} the loss is {loss} and {len(broken)} trained tensors are not '
                f'finite; nothing saved before in {str(self.folder.path)!r} is lost. Lower '
                f'train.optimizer.lr (now {lr:g}), set train.clip_norm, or choose train.precision="fp32".'
            )

    def _end_epoch(
        self,
        learner: Learner,
        epoch: int,
        progress: Progress,
        meter: Meter,
        log: Log | None,
        bar: ProgressBar,
        stop: Stop,
    ) -> None:
        """Validates if a validation is due, keeps the best weights, and stops a run that gets no better."""
        evaluation = self.settings.evaluation
        patience = self.settings.train.early_stop
        line = f'epoch {epoch}: {self._told_means(*meter.peek_epoch())}'
        is_due = epoch % evaluation.every == 0 or epoch == self.settings.train.max_epochs
        if not is_due or not self.feed.has('val'):
            bar.say(line)
            meter.end_epoch()
            return
        with learner.averaged(), stop.interrupting():
            self.hooks.call('before_val_epoch')
            results = self.judge.measure('val')
        self.hooks.call('after_val_epoch', metrics=results)
        meter.end_epoch()
        if log:
            log.write(progress.step, epoch=epoch, **{f'val_{name}': value for name, value in results.items()})
        bar.say(', '.join([line, *(f'validation {name} {value:.4f}' for name, value in results.items())]))
        name, result = next(iter(results.items()))
        if math.isnan(result) and (evaluation.select == 'best' or patience is not None):
            raise TrainingError(
                f'the metric {name!r} is nan on the validation images of epoch {epoch}, and nan can choose '
                'nothing; let another metric be the first of evaluation.metrics.'
            )
        if self.judge.is_better(result, progress.best):
            progress.best = result
            progress.best_epoch = epoch
            if evaluation.select == 'best':
                self._best = {name: value.detach().clone() for name, value in learner.weights().items()}
        progress.stopped |= patience is not None and epoch - progress.best_epoch >= patience

    def _finish(self, progress: Progress, order: Order, log: Log | None) -> JsonObject:
        calibration = self.judge.choose()
        scored: Scored = {}
        after = {}
        if self.feed.has('test'):
            self.hooks.call('before_test_epoch')
            after = self.judge.measure('test', scored)
            self.hooks.call('after_test_epoch', metrics=after)
        summary = dict(
            **after,
            before=progress.before,
            validation=progress.best,
            selected=self._selected(progress),
            epochs=progress.step / order.steps,
            steps=progress.step,
            train_images=order.length,
            parameters=self.model.count(),
            train_seconds=progress.train_seconds,
            seed=self.settings.seed,
            peak_memory_mb=peak_memory_mb(self.accelerator.device),
            work_dir=str(self.folder.path),
            **calibration,
        )
        if self.accelerator.is_main_process:
            facts = dict(metrics=after, settings=self.settings.to_dict())
            self.save_output(self.model, self.folder.output, facts)
            size = (self.folder.output / 'tuner.safetensors').stat().st_size
            summary |= dict(output=str(self.folder.output), output_bytes=size)
        self.hooks.runner.summary = summary
        self.hooks.call('after_run')
        if log:
            log.track(progress.step, **{f'test_{name}': value for name, value in after.items()})
            log.flush()
            path = self.folder.path
            views = self.judge.views
            write_outcome(path, self.model, self.data, self.settings, summary, scored, after, views)
            self.folder.finish(summary)
        self.accelerator.wait_for_everyone()
        return summary

    def _selected(self, progress: Progress) -> str:
        """The choice of the weights, in words."""
        if not self._best:
            return 'last epoch'
        held_out = self.settings.dataset.val is None
        val = 'images held out of train' if held_out else 'images of the validation split'
        return f'epoch {progress.best_epoch}, the best on {len(self.data["val"])} {val}'

    @property
    def _watched(self) -> str | None:
        """The name of the number that the log shows beside the loss. None: tasks watch different numbers."""
        names = {classifier.objective.watched for classifier in self.model.tasks.values()}
        return names.pop() if len(names) == 1 else None

    def _told_means(self, loss: float, watched: float) -> str:
        return f'loss {loss:.3f}' + (f', {self._watched} {watched:.3f}' if self._watched else '')

    def _save(self, learner: Learner, progress: Progress, meter: Meter, log: Log | None) -> None:
        progress.routes = learner.routes
        counted = meter.state(self.accelerator)
        self._refuse_diverged(progress, counted[0], learner.optimizer.param_groups[0]['lr'])
        if log:
            parts = learner.state() | (dict(best=self._best) if self._best else {})
            self.folder.save(
                replace(progress, log_bytes=log.flush(), meter=counted, hooks=self.hooks.state()),
                parts,
                self.settings.train.checkpoint.keep,
            )
