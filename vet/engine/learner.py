"""Learner: takes one optimizer step. Its state is everything that a resumed run needs for the next step."""

from bisect import bisect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import accumulate

import torch
from accelerate import Accelerator
from torch import nn
from torchvision.transforms import v2

from vet.config import Stage, Train
from vet.core.loss import Counts, Loss
from vet.core.modes import modes_noted
from vet.core.multitask import Classifier
from vet.core.reweight import forward_kept
from vet.core.tensor_file import check_tensors
from vet.datasets.base import ImageData, by_task, item_of, known_targets, objective_of, targets_of
from vet.engine.batch_norms import share_statistics, single_values_normed
from vet.engine.ema import Average, copy_into, shortened, swapped
from vet.engine.fast.door import Tricks
from vet.engine.feed.door import Batch, Order
from vet.engine.gradients import GradientWatch
from vet.engine.meter import Meter
from vet.engine.optim import USUAL, build_optimizer, lr_factor, refuse_unfit_schedule, rules_of
from vet.engine.saving.door import load_optimizer_state, on_main, optimizer_state
from vet.errors import UserError
from vet.log import say, warn
from vet.optimizers.sam import at_worst
from vet.optimizers.two_points import in_training
from vet.patterns import fits
from vet.seeding import seed_everything


class Learner:
    """Trains the trainable parameters of `model`, and no others, as `train` says, in the order of `order`.

    Training has stages (train.stages, or one). Each stage has its own parameters, optimizer and schedule.
    step: the first step to take.
    part: the part of the model that batches go through. None: the whole model.
    losses: {task: loss}. None: the losses of `train` that need no count of images.
    routes: {module: route} of a run that continues. None: a new run.
    """

    def __init__(
        self,
        model: Classifier,
        train: Train,
        order: Order,
        accelerator: Accelerator,
        step: int = 0,
        part: nn.Module | None = None,
        losses: Mapping[str | None, Loss] | None = None,
        routes: Mapping[str, str] | None = None,
    ):
        self.model = model
        self.train = train
        self.order = order
        self.accelerator = accelerator
        self._part = model if part is None else part
        self.average = Average(model.trained_state(), train.ema) if train.ema else None
        self._all = model.trainable()
        self._rules = rules_of(model, train)
        told = shortened(train.ema, train.max_epochs * order.steps) if train.ema else None
        if told and accelerator.is_main_process:
            warn(f'warning: {told}.')
        self._stages = train.stages or [Stage(train.max_epochs)]
        lengths = (stage.epochs * order.steps for stage in self._stages)
        self._begins = list(accumulate(lengths, initial=0))  # the first step of each stage, and the end
        self._mix = {
            task: _mixture(train, len(classifier.classes)) for task, classifier in model.tasks.items()
        }
        self._losses = losses or losses_of(model, train, accelerator.device)
        for stage in self._stages:
            if self._all and not any(fits(stage.train, name) for name in self._all):
                raise UserError(
                    f'the stage train={stage.train!r} trains none of the {len(self._all)} parameters, such '
                    f'as {", ".join(list(self._all)[:2])} and {list(self._all)[-1]}; give a regular '
                    'expression that fits.'
                )
        self._wrapped, self._while_training = ExitStack(), ExitStack()
        restore_modes = modes_noted([*model.modules(), *self._part.modules()])
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            self._begin(bisect(self._begins, step, hi=len(self._stages)) - 1)
            self._change_for_training(routes)
        except BaseException:
            self.close()
            restore_modes()
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            raise

    def _change_for_training(self, routes: Mapping[str, str] | None) -> None:
        """Makes the changes of the network that `close` undoes.

        UserError if a setting does not fit the network.
        """
        self._tricks = Tricks(self.model, self.train, self.accelerator, routes)
        self._while_training.enter_context(self._tricks.while_training())
        if not self.train.compile:
            self._while_training.enter_context(single_values_normed(self.model))

    def _begin(self, stage: int) -> None:
        """Freezes the parameters that the stage does not train, and makes the stage's optimizer.

        DDP is made again, because it must know which parameters train.
        """
        self._unwrap()
        this = self._stages[stage]
        train = self.train
        for name, parameter in self._all.items():
            parameter.requires_grad_(fits(this.train, name))
        self.stage = stage
        self.parameters = {
            name: parameter for name, parameter in self._all.items() if parameter.requires_grad
        }
        changes = this.optimizer or {}
        self.schedule = replace(train.lr_scheduler, T_max=this.epochs) if train.stages else train.lr_scheduler
        self.optimizer = build_optimizer(
            changes if 'type' in changes else {**train.optimizer, **changes},
            self.parameters,
            this.head_lr or train.head_lr,
            self._rules,
        )
        self.base_lrs = [group['lr'] for group in self.optimizer.param_groups]
        refuse_unfit_schedule(self.optimizer, self.schedule, self.model.trained_state())
        first = self._rules.get(next(iter(self.parameters)), USUAL)
        self.usual_lr = self.base_lrs[0] / first.lr_factor
        mode = train.compile if isinstance(train.compile, str) else None
        self._wrapped.enter_context(forward_kept(self._part))  # accelerate leaves its own forward behind
        names = set(vars(self._part))
        self.net: nn.Module = self.accelerator.prepare_model(
            torch.compile(self._part, mode=mode) if train.compile else self._part
        )
        for name in set(vars(self._part)) - names:  # accelerate's marks, with which it would not wrap again
            self._wrapped.callback(vars(self._part).pop, name, None)
        self.net.train()
        self._watch = GradientWatch(
            self.model, self.accelerator.is_main_process, this.epochs * self.order.steps
        )

    def step(self, batches: list[Batch], step: int, meter: Meter) -> float:
        """Takes step number `step`: the gradient of the mean loss over all its images.

        How the images are spread over processes and batches does not matter. Returns the tuners' learning
        rate, without train.groups and train.layer_decay.
        """
        accelerator = self.accelerator
        train = self.train
        if step == self._begins[self.stage + 1]:
            self._begin(self.stage + 1)
        factor = lr_factor(self.schedule, (step - self._begins[self.stage] + 0.5) / self.order.steps)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs):
            group['lr'] = base * factor
        # DDP takes the mean over processes, not over images
        share = accelerator.num_processes / self.order.step_size(step)
        with in_training(self.optimizer):
            self._gradient(batches, step, share, meter)
            if train.sam is not None:
                with self._at_worst(train.sam):
                    self._gradient(batches, step, share, None)
            self._watch.look(self.parameters, {batch.task for batch in batches})
            if train.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.parameters.values(), train.clip_norm)
            self.optimizer.step()
        for tuner in self.model.tuners:
            tuner.on_step((step + 1) / (train.max_epochs * self.order.steps))
        self.optimizer.zero_grad()
        share_statistics(self.model, accelerator, int(sum(batch.weights.sum() for batch in batches)))
        if self.average:
            self.average.update(self.model.trained_state(), step)
        if self._tricks.routes.taken is None:
            self._choose_routes()
        return self.usual_lr * factor

    def _choose_routes(self) -> None:
        """The main process measures, so that all processes take the same routes."""
        routes = self._tricks.routes
        routes.take(on_main(self.accelerator, routes.measured))
        if self.accelerator.is_main_process and routes.told():
            say(f'routes of low-rank updates: {routes.told()} layers (train.routes)')

    @property
    def routes(self) -> Mapping[str, str] | None:
        """{module: route} for a checkpoint. None: nothing is chosen before the first step."""
        return self._tricks.routes.taken

    def _gradient(self, batches: list[Batch], step: int, share: float, meter: Meter | None) -> None:
        """The gradient of step number `step`. The draws of dropout and mixtures depend on the step alone."""
        seed_everything(self.order.seed, 'step', step, self.accelerator.process_index)
        with self._tricks.in_a_step():
            self._accumulate(batches, share, meter)

    @contextmanager
    def _at_worst(self, rho: float) -> Iterator[None]:
        """See at_worst. The running statistics of the step are those of the weights themselves."""
        state = self.model.trained_state() | self.model.training_state()
        buffers = {name: value for name, value in state.items() if name not in self._all}
        with swapped(buffers, buffers), at_worst(self.parameters.values(), rho):
            yield

    def _accumulate(self, batches: list[Batch], share: float, meter: Meter | None) -> None:
        """Adds up the gradient of the batches. meter: None notes nothing."""
        accelerator = self.accelerator
        for i, batch in enumerate(batches):
            images = batch.images
            targets = batch.labels
            if (mixture := self._mix[batch.task]) and len(targets) > 1:
                images, targets = mixture(images, targets)
            tuners = self.model.for_task(batch.task).tuners
            comparing = [tuner.consistency for tuner in tuners if tuner.consistency]
            with nullcontext() if i == len(batches) - 1 else accelerator.no_sync(self.net):
                with accelerator.autocast():
                    passed = self.net(torch.cat([images, images]) if comparing else images, *batch.route)
                logits, *again = passed.chunk(2) if comparing else (passed,)
                losses = self._losses[batch.task](logits.float(), targets)
                for consistency in comparing:
                    losses = losses + consistency(logits.float(), again[0].float())
                loss = (losses * batch.weights).sum() * share
                if i == 0:
                    loss = sum((p for tuner in tuners if (p := tuner.penalty()) is not None), start=loss)
                accelerator.backward(loss)
            if meter is None:
                continue
            watched = self.model.for_task(batch.task).objective.watch(logits.detach(), batch.labels)
            meter.add(losses.detach(), watched, batch.weights)

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained tensors for evaluation: the average, if there is one."""
        return self.average.state if self.average else self.model.trained_state()

    def averaged(self) -> AbstractContextManager[None]:
        """Within this context, the model holds the tensors for evaluation."""
        return swapped(self.model.trained_state(), self.average.state if self.average else None)

    def keep(self, weights: Mapping[str, torch.Tensor]) -> None:
        """The model gets `weights`, such as those of the best epoch."""
        copy_into(self.model.trained_state(), weights)

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """The parts of a checkpoint: 'model', 'tuners', 'optimizer' and 'ema'."""
        names: dict[torch.Tensor, str] = {parameter: name for name, parameter in self.parameters.items()}
        average = dict(ema=self.average.state) if self.average else {}
        return dict(
            model=self.model.trained_state(),
            tuners=self.model.training_state(),
            optimizer=optimizer_state(self.optimizer, names),
            **average,
        )

    def restore(self, parts: dict[str, dict[str, torch.Tensor]], step: int) -> None:
        """Restores the `state` that was saved before `step`.

        If a stage begins there, its optimizer starts afresh.
        """
        wanted = dict(
            model=self.model.trained_state(), **(dict(ema=self.average.state) if self.average else {})
        )
        for owner, tensors in dict(wanted, tuners=self.model.training_state(), best=wanted['model']).items():
            if owner in wanted or owner in parts:
                check_tensors(parts.get(owner, {}), tensors, f'the checkpoint, {owner}')
        self.model.load_trained_state(parts['model'], 'the checkpoint')
        copy_into(self.model.training_state(), parts.get('tuners', {}))
        if step != self._begins[self.stage]:
            load_optimizer_state(self.optimizer, self.parameters, parts.get('optimizer', {}))
        if self.average:
            copy_into(self.average.state, parts['ema'])

    def close(self) -> None:
        """Gives the model back as it was, except for the trained numbers."""
        self._unwrap()
        self._while_training.close()

    def _unwrap(self) -> None:
        """Removes accelerate's wrapper of the model. Then all parameters may train again."""
        if hasattr(self, 'net'):
            self.accelerator.unwrap_model(self.net, keep_fp32_wrapper=False)
        for parameter in self._all.values():
            parameter.requires_grad_()
        self._wrapped.close()


def losses_of(
    model: Classifier, train: Train, device: torch.device, counts: Mapping[str | None, Counts] | None = None
) -> dict[str | None, Loss]:
    """{task: the loss of train.loss}. None in train.loss is the loss of each task's objective.

    counts: {task: see vet/core/loss.py}.
    UserError if a loss does not fit the objective, or if targets cannot be mixed.
    """
    for classifier in model.tasks.values():
        for name in ('mixup', 'cutmix'):
            if getattr(train, name) and not classifier.objective.mixes:
                raise UserError(
                    f'train.{name} is {getattr(train, name):g}, but the objective '
                    f'{classifier.objective.given["type"]!r} has no mixture of two '
                    f'targets. Set train.{name} to 0.'
                )
    return {
        task: Loss(train.loss, classifier.objective, train.label_smoothing, (counts or {}).get(task), device)
        for task, classifier in model.tasks.items()
    }


def losses_on(
    data: ImageData, model: Classifier, train: Train, device: torch.device
) -> dict[str | None, Loss]:
    """See losses_of. data: the training images, which the losses may count.

    UserError if a loss does not take the mixtures of targets that the run has.
    """

    def count(task_data: ImageData) -> tuple[list[int], int]:
        return objective_of(task_data).counts(targets_of(task_data)), len(task_data)

    datasets = by_task(data)
    losses = losses_of(
        model, train, device, {task: partial(count, task_data) for task, task_data in datasets.items()}
    )
    for task, task_data in datasets.items():
        known = known_targets(task_data)
        first = item_of(task_data, 0)[1] if known is None else known[0]
        if train.mixup or train.cutmix or model.for_task(task).objective.is_mixture(first):
            losses[task].refuse_mixtures(device)
    return losses


def _mixture(train: Train, num_classes: int) -> nn.Module | None:
    mixes = [
        kind(alpha=alpha, num_classes=num_classes)
        for kind, alpha in ((v2.MixUp, train.mixup), (v2.CutMix, train.cutmix))
        if alpha > 0
    ]
    return v2.RandomChoice(mixes) if mixes else None
