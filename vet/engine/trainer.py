"""Trainer: trains an ImageClassifier on a dataset. Begins with a work folder or a checkpoint, ends with a
model folder.

builders.build_trainer makes it. It knows no tuner, head or dataset by name.
"""

import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from torchvision.transforms import v2

from vet.config import Settings
from vet.core.augmented import averaged, refuse_unfit_tta
from vet.core.coverage import report
from vet.core.head import FittedHead
from vet.core.loss import Counts, Loss
from vet.core.model import ImageClassifier
from vet.core.multitask import MultiTaskClassifier
from vet.core.objective import build_objective, refuse_counts
from vet.core.tensor_file import read_tensors
from vet.datasets.base import errors_named, follow_models, item_of, known_targets, objective_of, targets_of
from vet.engine.device import make_accelerator
from vet.engine.ema import copy_into, swapped
from vet.engine.evaluate import features_of, is_lower_better, measure, refuse_unfit_metrics, score
from vet.engine.fast.door import freed_memory_kept, refuse_without_fp8
from vet.engine.feed.door import (
    Batch,
    Feed,
    Order,
    opened,
    refuse_masks_on_device,
    refuse_two_normalisations,
    refuse_unfit_views,
    samplers_of,
)
from vet.engine.learner import Learner, losses_of
from vet.engine.meter import Meter
from vet.engine.reporting import Found, write_answers, write_report
from vet.engine.saving.door import (
    Log,
    Progress,
    Trackers,
    WorkFolder,
    draw_curves,
    identity_of,
    peak_memory_mb,
    require_trackers,
    try_saving,
)
from vet.engine.stop import Stop, StopRequested
from vet.engine.together import on_main
from vet.environment import describe
from vet.errors import DataError, DivergedError, TrainingError, UserError
from vet.failures import failures_named
from vet.files import JsonObject, read_json
from vet.hooks.base import Hook
from vet.hooks.runner import Hooks, Runner
from vet.log import say, warn
from vet.progress import ProgressBar
from vet.seeding import seed_everything
from vet.transforms.torchvision import build_transform, on_tensors

MEASURED = (  # the entries of a summary that a benchmark records too, beside the metrics
    'before',
    'validation',
    'selected',
    'epochs',
    'steps',
    'train_images',
    'parameters',
    'train_seconds',
    'peak_memory_mb',
)
SUMMARY = (
    *MEASURED,
    'calibration',
    'seed',
    'work_dir',
    'output',
    'output_bytes',
)  # all entries beside the metrics


class Trainer:
    """Trains `model` on data['train'], validates on data['val'] if there is one, reports on data['test'].

    save_output(model, folder, facts): writes the model folder when training ends.
    is_prepared: whether the model was trained before, so that its tuners are not prepared again.
    how_to_go_on: the command that continues the run after a stop. The message ends with it.
    """

    how_to_go_on: object = 'build_trainer(…, work_dir=…, resume="auto").train()'

    def __init__(
        self,
        model: ImageClassifier | MultiTaskClassifier,
        data: dict[str, Any],  # the datasets, by split
        settings: Settings,
        folder: WorkFolder,
        save_output: Callable[[Any, Path, JsonObject], None],
        device: str | None = None,
        is_prepared: bool = False,
    ):
        self.settings = settings
        self.data = data
        self.folder = folder
        self._save_output = save_output
        if settings.train.deterministic:
            os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # cuBLAS needs this
            torch.use_deterministic_algorithms(True)
        if settings.train.threads is not None:
            torch.set_num_threads(settings.train.threads)
        unused = len(model.tasks) > 1 or any(tuner.no_gradient for tuner in model.tuners)
        self.accelerator = make_accelerator(device, settings.train.precision, some_unused=unused)
        self.model = model.to(self.accelerator.device)
        self._augment, self._view = {}, {}
        for task, part in model.tasks.items():
            needs, objective = vars(part.backbone.preprocessing), part.objective
            self._augment[task] = build_transform(settings.train.transform, **needs, on_masks=objective.dense)
            self._view[task] = build_transform(
                objective.evaluation_transform(settings.evaluation.transform), **needs
            )
        self._prepare_datasets()
        for task in model.tasks:
            refuse_two_normalisations(self._augment[task], self._view[task])
        if settings.train.transform_on == 'device':
            refuse_masks_on_device(model)
        if settings.train.transform_on != 'pil':
            self._augment = {task: on_tensors(transform) for task, transform in self._augment.items()}
        self._best: dict[str, torch.Tensor] | None = None
        self._feed = Feed(data, settings, self.accelerator)
        self._hooks = Hooks(settings.custom_hooks, Runner(self.model, settings, self.accelerator))
        self._training, self._is_prepared = False, is_prepared

    def _prepare_datasets(self) -> None:
        for dataset in self.data.values():
            if dataset is not None:
                follow_models(dataset, self.model.tasks)

    def add_hook(self, hook: Hook) -> None:
        """Adds a hook to those of the config, before `train`."""
        self._hooks.add(type(hook).__name__, hook)

    def train(self) -> JsonObject:
        """Trains to the end, from the start or a checkpoint, and writes the model folder.

        Returns the summary: the test metrics ('accuracy': 0..1, …), 'before', 'parameters', 'train_seconds',
        'selected', 'output', ….

        At SIGINT (Ctrl-C), SIGTERM or SIGHUP the run finishes the step and writes a checkpoint. Then the
        handler from before `train` gets the signal: Ctrl-C raises KeyboardInterrupt. A second signal gets
        there at once.
        """
        summary = on_main(self.accelerator, lambda: self.folder.finished(self.settings, self._identity))
        if summary is not None:
            self._load_output()
            return summary
        self._training = True
        try:
            with failures_named(self.folder.how_to_continue), freed_memory_kept(self.accelerator.device):
                summary, stop = self._train()
        finally:
            self._training = False
            self._feed.forget()
            self.folder.close()
        return summary if summary is not None else stop.redeliver()

    def evaluate(self, split: str = 'test') -> dict[str, float]:
        """The metrics of the present model: {'accuracy': 0..1, …}. TrainingError while a training runs."""
        if self._training:
            raise TrainingError(
                'no split is evaluated on demand while training runs, because a user could choose by it; '
                'evaluate before train() or after it.'
            )
        refuse_unfit_views(
            self.model, self.data['train'], 'evaluation.transform', self._view, self.accelerator
        )
        return self._measure(split)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the present model as a model folder, without metrics. An old model folder is replaced.

        UserError for a folder that holds something else.
        """
        folder = Path(folder)
        if (
            folder.exists()
            and not (folder / 'tuner.safetensors').is_file()
            and (folder.is_file() or any(folder.iterdir()))
        ):
            raise UserError(f'{str(folder)!r} exists and is no model folder; give a new or an empty folder.')
        if self.accelerator.is_main_process:
            self._save_output(self.model, folder, dict(metrics={}, settings=self.settings.to_dict()))
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def predict(
        self, images: list[Any], topk: int | None = None, task: str | None = None
    ) -> list[dict[str, Any]]:
        """The answer of the objective for each image, as `pipeline` gives it. images: a list, as for
        `pipeline`.

        topk: the largest number of labels of an image. None: one, or for several labels: all.
        """
        refuse_counts(topk=1 if topk is None else topk)
        model = self.model.for_task(task).eval()
        views, sizes = [], []
        for number, image in enumerate(images):
            with errors_named(f'image {number} of those given'.format):
                seen = opened(image, model.backbone.preprocessing.gray_range)
                height, width = v2.functional.get_size(seen)
                sizes.append((height, width))
                views.append(self._view[task](seen))
        if not views:
            return []
        if model.objective.dense:
            found = []
            for view, size in zip(views, sizes):
                with self.accelerator.autocast():
                    outputs = model.of_any_size(view[None].to(self.accelerator.device))
                found += model.objective.answers(model.objective.fitted(outputs.float(), size), topk, usual=1)
            return found
        with self.accelerator.autocast():
            stacked = torch.stack(views).to(self.accelerator.device)
            outputs = averaged(model, stacked, self.settings.evaluation.tta, model.objective)
        return model.objective.answers(outputs, topk, usual=1)

    def _load_output(self) -> None:
        """Loads the output of a finished run into the model. DataError for a damaged file."""
        path, saved = (
            self.folder.output / 'tuner.safetensors',
            read_json(self.folder.output / 'configuration.json'),
        )
        sha256 = (saved.get('sha256') or {}).get(path.name)
        tensors = read_tensors(path, 'Start the run again in another work folder.', sha256)
        self.model.load_trained_state(tensors, str(path))
        # thresholds, for example, are in the configuration
        for task, part in self.model.tasks.items():
            entry = saved['model']['tasks'][task] if task else saved['model']
            if entry.get('objective'):
                part.objective = build_objective(entry['objective'], part.classes)
        self._prepare_datasets()

    def _train(self) -> tuple[JsonObject | None, Stop]:
        """The summary. None after a signal; then the run is saved."""
        settings = self.settings
        accelerator = self.accelerator
        train = self.settings.train
        is_main = accelerator.is_main_process
        if train.precision == 'fp8':
            refuse_without_fp8(accelerator.device)
        require_trackers(train.trackers)
        for key, views in (('train.transform', self._augment), ('evaluation.transform', self._view)):
            refuse_unfit_views(self.model, self.data['train'], key, views, accelerator)
        for part in self.model.tasks.values():
            refuse_unfit_tta(settings.evaluation.tta, part.objective)
            refuse_unfit_metrics(
                settings.evaluation.metrics or part.objective.metrics, part.objective, SUMMARY
            )
        if settings.evaluation.calibrate:
            self._refuse_unfit_calibration()
        losses = losses_of(self.model, train, accelerator.device, self._counts())
        self._refuse_mixtures(losses)
        checkpoint, self.folder.path = on_main(accelerator, self._begin)
        progress, parts = self.folder.load(checkpoint, settings)
        order = Order(
            len(self.data['train']),
            train.dataloader.batch_size_per_gpu * accelerator.num_processes,
            train.accumulate,
            settings.seed,
            accelerator.process_index,
            accelerator.num_processes,
            tuple(len(part) for part in getattr(self.data['train'], 'tasks', {}).values()),
            samplers_of(train.sampler, self.data['train']),
        )
        if parts and progress.processes != accelerator.num_processes:
            raise TrainingError(
                f'the run was begun with {progress.processes} processes, which share each batch; continue '
                f'with as many (given: {accelerator.num_processes}).'
            )
        progress.processes = accelerator.num_processes
        self._feed.keep_images()
        if not parts:
            seed_everything(settings.seed, 'prepare')
            for task, part in self.model.tasks.items() if not self._is_prepared else ():
                for tuner in part.tuners:
                    tuner.prepare(
                        (batch.images, batch.labels)
                        for batch in self._feed.batches(order, 0, self._augment)
                        if batch.task == task
                    )
            if accelerator.num_processes > 1:  # each process may have prepared from other images
                copy_into(self.model.trained_state(), broadcast(self.model.trained_state()))
        self._feed.keep_features(self.model)
        if not parts and not self._is_prepared:
            self._fit_heads()
        if not parts and settings.evaluation.before and self.data.get('test') is not None:
            progress.before = self._measure('test')
        features = self._feed.features('train', self._augment)
        learner = Learner(
            self.model, train, order, accelerator, progress.step, features.net if features else None, losses
        )
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
            copy_into(self.model.trained_state(), self._best or learner.weights())
            return self._finish(progress, order, log), stop
        raise AssertionError  # mypy: an ExitStack may hide errors

    def _log(self, progress: Progress, is_resumed: bool) -> Log:
        trackers, path = self.settings.train.trackers, self.folder.path
        return Log(
            path,
            progress.step,
            progress.log_bytes,
            Trackers(trackers, path, self.settings.to_dict(), is_resumed) if trackers else None,
        )

    def _begin_hooks(self, progress: Progress, order: Order, log: Log | None) -> None:
        """Tells the hooks where the run stands, and calls the first point."""
        runner = self._hooks.runner
        runner.work_dir, runner.max_iters = self.folder.path, self.settings.train.max_epochs * order.steps
        runner.iter, runner.epoch = progress.step, progress.step // order.steps
        if log:
            runner.record = lambda **values: log.write(runner.iter, epoch=runner.epoch, **values)
        self._hooks.restore(progress.hooks)
        self._hooks.call('before_run')

    def _identity(self) -> JsonObject:
        return identity_of(self.model, self.data)

    def _begin(self) -> tuple[Path | None, Path]:
        """Prepares the work folder, and tries the end of the run.

        Returns the checkpoint to continue, and the folder.
        """
        environment = describe(self.accelerator.device) | dict(command=sys.argv)
        checkpoint = self.folder.begin(self.settings, self._identity(), environment)
        try_saving(self.model, self.settings, self.folder.path, self._save_output)
        return checkpoint, self.folder.path

    def _tell_coverage(self) -> None:
        """Prints which share of the network the tuners reach. A small share is a warning with the reason."""
        lines, shortfalls = report(self.model.tuners)
        for line in lines:
            say(line)
        for text in shortfalls:
            warnings.warn(text, stacklevel=2)

    def _tell_of(self, stop: Stop, progress: Progress) -> None:
        if self.accelerator.is_main_process:
            warn(f'{stop.name}: the run is saved after step {progress.step}. To go on: {self.how_to_go_on}')

    def _epochs(
        self, learner: Learner, progress: Progress, log: Log | None, bar: ProgressBar, stop: Stop
    ) -> None:
        """Takes all remaining steps, or stops at a signal."""
        train, order = self.settings.train, learner.order
        batches = self._feed.batches(order, progress.step, self._augment)
        meter, last = Meter(self.accelerator.device), train.max_epochs * order.steps
        meter.restore(progress.meter, self.accelerator.is_main_process)
        saves_at, is_asked = train.checkpoint, False
        while not is_asked and (progress.pending or (progress.step < last and not progress.stopped)):
            saves = False
            if not progress.pending:
                began = time.perf_counter()
                lr = self._step(
                    learner, list(islice(batches, order.step_batches(progress.step))), progress, meter
                )
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
        hooks, steps = self._hooks, learner.order.steps
        number = progress.step % steps
        if number == 0:
            hooks.call('before_train_epoch')
        hooks.call('before_train_iter', batch_idx=number, data_batch=batches)
        before = meter.sums()
        lr = learner.step(batches, progress.step, meter)
        progress.step += 1
        progress.pending = progress.step % steps == 0
        hooks.runner.iter, hooks.runner.epoch = progress.step, progress.step // steps
        if hooks:
            loss, _, images = meter.sums() - before
            outputs = dict(loss=loss / images.clamp(min=1), lr=lr)
            hooks.call('after_train_iter', batch_idx=number, data_batch=batches, outputs=outputs)
        if progress.pending:
            hooks.call('after_train_epoch')
        return lr

    def _heard_hooks(self, progress: Progress) -> bool:
        """Notes that a hook wants to stop. Returns whether a checkpoint is due."""
        progress.stopped |= self._hooks.asked('stop')
        return self._hooks.asked('save') or progress.stopped

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
        """Validates if a validation is due, keeps the best weights, and stops the run if it gets no
        better.
        """
        evaluation, patience = self.settings.evaluation, self.settings.train.early_stop
        line = f'epoch {epoch}: {self._told_means(*meter.peek_epoch())}'
        if self.data.get('val') is None or (
            epoch % evaluation.every and epoch != self.settings.train.max_epochs
        ):
            bar.say(line)
            meter.end_epoch()
            return
        with (
            swapped(self.model.trained_state(), learner.average.state if learner.average else None),
            stop.interrupting(),
        ):
            self._hooks.call('before_val_epoch')
            results = self._measure('val')
        self._hooks.call('after_val_epoch', metrics=results)
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
        is_lower = is_lower_better(self.metrics)
        if progress.best is None or (result < progress.best if is_lower else result > progress.best):
            progress.best, progress.best_epoch = result, epoch
            if evaluation.select == 'best':
                self._best = {name: value.detach().clone() for name, value in learner.weights().items()}
        progress.stopped |= patience is not None and epoch - progress.best_epoch >= patience

    def _finish(self, progress: Progress, order: Order, log: Log | None) -> JsonObject:
        calibration = self._choose_on_validation()
        found: Found = {}
        after = self._measure('test', found) if self.data.get('test') is not None else {}
        val = (
            'images held out of train'
            if self.settings.dataset.val is None
            else 'images of the validation split'
        )
        selected = (
            f'epoch {progress.best_epoch}, the best on {len(self.data["val"])} {val}'
            if self._best
            else 'last epoch'
        )
        summary = dict(
            **after,
            before=progress.before,
            validation=progress.best,
            selected=selected,
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
            self._save_output(self.model, self.folder.output, facts)
            size = (self.folder.output / 'tuner.safetensors').stat().st_size
            summary |= dict(output=str(self.folder.output), output_bytes=size)
        self._hooks.runner.summary = summary
        self._hooks.call('after_run')
        if log:
            log.track(progress.step, **{f'test_{name}': value for name, value in after.items()})
            log.flush()
            try:
                draw_curves(self.folder.path, self.folder.path / 'curves.png')
            except DataError as error:  # a run without curves is better than no run
                warn(f'no curves are drawn: {error}')
            if None in found:
                write_answers(self.folder.path, self.model.for_task(None).objective, *found[None])
            if self.settings.evaluation.report:
                write_report(
                    self.folder.path,
                    self.model,
                    self.data,
                    self.settings,
                    summary,
                    list(after),
                    found,
                    self._view,
                )
            self.folder.finish(summary)
        self.accelerator.wait_for_everyone()
        return summary

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics, as the config says, else as the objectives of the tasks say."""
        usual = (part.objective.metrics for part in self.model.tasks.values())
        return list(self.settings.evaluation.metrics or dict.fromkeys(chain(*usual)))

    @property
    def _watched(self) -> str | None:
        """The name of the number that the log shows beside the loss. None: tasks watch different numbers."""
        names = {part.objective.watched for part in self.model.tasks.values()}
        return names.pop() if len(names) == 1 else None

    def _told_means(self, loss: float, watched: float) -> str:
        return f'loss {loss:.3f}' + (f', {self._watched} {watched:.3f}' if self._watched else '')

    def _counts(self) -> dict[str | None, Counts]:
        """{task: a function that counts the training images of each class, and all of them}."""

        def count(dataset: Any) -> tuple[list[int], int]:
            return objective_of(dataset).counts(targets_of(dataset)), len(dataset)

        train = self.data['train']
        return {task: partial(count, part) for task, part in getattr(train, 'tasks', {None: train}).items()}

    def _fit_heads(self) -> None:
        """Computes the heads in closed form from the training images, as evaluation sees them."""
        for task, model in self.model.tasks.items():
            if not isinstance(model.head, FittedHead):
                continue
            dataset, views, kept = self._feed.training_once(self._view)
            part, loader = (
                getattr(dataset, 'tasks', {None: dataset})[task],
                self.settings.evaluation.dataloader,
            )
            found = features_of(model, part, views[task], self.accelerator, loader, kept)
            features, targets = map(torch.from_numpy, found)
            model.head.fit(features, model.objective.coded(targets))
            if self.accelerator.num_processes > 1:  # processors may round differently
                copy_into(model.head.state_dict(), broadcast(model.head.state_dict()))

    def _refuse_mixtures(self, losses: Mapping[str | None, Loss]) -> None:
        """UserError if a loss does not take the mixtures of targets that this run has."""
        data, train = self.data['train'], self.settings.train
        for task, part in getattr(data, 'tasks', {None: data}).items():
            known = known_targets(part)
            first = item_of(part, 0)[1] if known is None else known[0]
            if train.mixup or train.cutmix or self.model.for_task(task).objective.is_mixture(first):
                losses[task].refuse_mixtures(self.accelerator.device)

    def _refuse_unfit_calibration(self) -> None:
        """UserError if no temperature can be chosen."""
        for part in self.model.tasks.values():
            if not part.objective.calibrates:
                raise UserError(
                    'evaluation.calibrate is True, but the objective '
                    f'{part.objective.given["type"]!r} has no temperature. Set evaluation.calibrate to False.'
                )
        if self.data.get('val') is None:
            raise UserError(
                'evaluation.calibrate is True, but there are no validation images to choose a temperature '
                'on. Give dataset.val; or set evaluation.select to "best", which holds out training images.'
            )

    def _choose_on_validation(self) -> JsonObject:
        """Lets each objective choose its numbers, such as thresholds, on the validation images.

        Returns the entry 'calibration' of the summary, if evaluation.calibrate says so.
        """
        calibration: JsonObject = {}
        for task, part in self.model.tasks.items():
            if self.settings.evaluation.calibrate:
                calibration[str(task)] = part.objective.calibrate(*self._validated(task, lambda found: found))
                if self.accelerator.is_main_process:
                    say(_told_calibration(task, calibration[str(task)]))
            if part.objective.chooses and self.data.get('val') is not None:
                part.objective.choose(*self._validated(task))
        if not calibration:
            return {}
        return dict(calibration=calibration.get('None', calibration))

    def _validated(
        self, task: str | None, then: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> tuple[Any, Any]:
        """The scores and the targets of a task's validation images. then: see `score`."""
        dataset, views = self._feed.source('val', self._view)
        loader = self.settings.evaluation.dataloader
        return score(
            self.model.for_task(task),
            dataset if task is None else dataset.tasks[task],
            views[task],
            self.accelerator,
            loader.batch_size_per_gpu,
            loader.workers_per_gpu,
            self._feed.features('val', self._view),
            then,
            self.settings.evaluation.tta,
        )

    def _measure(self, split: str, found: Found | None = None) -> dict[str, float]:
        if self.data.get(split) is None:
            raise UserError(
                f'there is no {split!r} split to evaluate on; give dataset.{split} in the config.'
            )
        return measure(
            self.model,
            *self._feed.source(split, self._view),
            self.accelerator,
            self.settings.evaluation,
            found,
            self._feed.features(split, self._view),
        )

    def _save(self, learner: Learner, progress: Progress, meter: Meter, log: Log | None) -> None:
        counted = meter.state(self.accelerator)
        self._refuse_diverged(progress, counted[0], learner.optimizer.param_groups[0]['lr'])
        if log:
            parts = learner.state() | (dict(best=self._best) if self._best else {})
            self.folder.save(
                replace(progress, log_bytes=log.flush(), meter=counted, hooks=self._hooks.state()),
                parts,
                self.settings.train.checkpoint.keep,
            )


def _told_calibration(task: str | None, found: JsonObject) -> str:
    """What was chosen for the scores, and the errors before and after, in words."""
    errors = [
        f'{title} {before:.4f} -> {after:.4f}'
        for title, (before, after) in (('likelihood loss', found['nll']), ('calibration error', found['ece']))
    ]
    of_task = f' of {task}' if task else ''
    return f'temperature{of_task} {found["temperature"]:.4f}: validation {", ".join(errors)}'
