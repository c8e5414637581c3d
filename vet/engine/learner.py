"""Learner: one optimizer step, and all that must be saved to take the next one as if nothing had come
between.
"""

from bisect import bisect
from contextlib import ExitStack, nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torchvision.transforms import v2

from vet.config import Stage, Train
from vet.core.model import ImageClassifier
from vet.core.multitask import MultiTaskClassifier
from vet.core.reweight import forward_kept
from vet.core.tensor_file import check_tensors
from vet.engine.batch_norms import share_statistics, single_values_normed
from vet.engine.ema import Average, copy_into, shortened
from vet.engine.fast.door import Tricks
from vet.engine.feed.door import Batch, Order
from vet.engine.gradients import GradientWatch
from vet.engine.meter import Meter
from vet.engine.optim import build_optimizer, lr_factor
from vet.engine.saving.door import load_optimizer_state, optimizer_state
from vet.errors import UserError
from vet.patterns import fits
from vet.progress import say
from vet.seeding import seed_everything


class Learner:
    """Trains the trainable parameters of `model`, and no others, as `train` says, in the order that `order`
    gives.

    In stages (of train.stages, or one), each with parameters, optimizer and schedule of its own. step: the
    first to be taken.
    part: the part of the model that the batches go through; all of it where not given.
    """

    def __init__(
        self,
        model: ImageClassifier | MultiTaskClassifier,
        train: Train,
        order: Order,
        accelerator: Accelerator,
        step: int = 0,
        part: nn.Module | None = None,
    ):
        self.model, self.train, self.order, self.accelerator = model, train, order, accelerator
        self._part = model if part is None else part
        self.average = Average(model.trained_state(), train.ema) if train.ema else None
        self._all = model.trainable()
        told = shortened(train.ema, train.max_epochs * order.steps) if train.ema else None
        if told and accelerator.is_main_process:
            say(f'warning: {told}.')
        self._stages = train.stages or [Stage(train.max_epochs)]
        self._begins = [
            sum(stage.epochs for stage in self._stages[:i]) * order.steps
            for i in range(len(self._stages) + 1)
        ]
        self._mix = {task: _mixture(train, len(part.classes)) for task, part in model.tasks.items()}
        for stage in self._stages:
            if self._all and not any(fits(stage.train, name) for name in self._all):
                raise UserError(
                    f'the stage train={stage.train!r} trains none of the {len(self._all)} parameters, such '
                    f'as {", ".join(list(self._all)[:2])} and {list(self._all)[-1]}; give a regular '
                    'expression that fits.'
                )
        self._wrapped, self._while_training = ExitStack(), ExitStack()
        try:
            self._begin(bisect(self._begins, step, hi=len(self._stages)) - 1)
            self._change_for_training()
        except BaseException:
            self.close()
            raise

    def _change_for_training(self) -> None:
        """Makes the changes of the network that `close` takes back. UserError where a setting does not
        fit the network.
        """
        if not self.train.compile:
            self._while_training.enter_context(single_values_normed(self.model))
        self._tricks = Tricks(self.model, self.train, self.accelerator)
        self._while_training.enter_context(self._tricks.while_training())

    def _begin(self, stage: int) -> None:
        """Freezes what the stage does not train, and makes its optimizer. DDP is told anew which
        parameters train.
        """
        self._unwrap()
        this, train = self._stages[stage], self.train
        for name, parameter in self._all.items():
            parameter.requires_grad_(fits(this.train, name))
        self.stage = stage
        self.parameters = {
            name: parameter for name, parameter in self._all.items() if parameter.requires_grad
        }
        changes = this.optimizer or {}
        self.optimizer = build_optimizer(
            changes if 'type' in changes else {**train.optimizer, **changes},
            self.parameters,
            this.head_lr or train.head_lr,
        )
        self.base_lrs = [group['lr'] for group in self.optimizer.param_groups]
        self.schedule = replace(train.lr_scheduler, T_max=this.epochs) if train.stages else train.lr_scheduler
        mode = train.compile if isinstance(train.compile, str) else None
        self._wrapped.enter_context(forward_kept(self._part))  # accelerate leaves its own behind
        self.net: nn.Module = self.accelerator.prepare_model(
            torch.compile(self._part, mode=mode) if train.compile else self._part
        )
        self.net.train()
        self._watch = GradientWatch(
            self.model, self.accelerator.is_main_process, this.epochs * self.order.steps
        )

    def step(self, batches: list[Batch], step: int, meter: Meter) -> float:
        """Step number `step`: the gradient of the mean loss over all its images, however they are spread and
        batched.

        Returns the tuners' learning rate.
        """
        accelerator, train = self.accelerator, self.train
        if step == self._begins[self.stage + 1]:
            self._begin(self.stage + 1)
        factor = lr_factor(self.schedule, (step - self._begins[self.stage] + 0.5) / self.order.steps)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs):
            group['lr'] = base * factor
        seed_everything(self.order.seed, 'step', step, accelerator.process_index)
        share = accelerator.num_processes / self.order.step_size(
            step
        )  # DDP takes the mean over processes, not images
        with self._tricks.in_a_step():
            self._accumulate(batches, share, meter)
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
        return self.base_lrs[0] * factor

    def _accumulate(self, batches: list[Batch], share: float, meter: Meter) -> None:
        """Adds up the gradient of the batches."""
        accelerator, train = self.accelerator, self.train
        for i, batch in enumerate(batches):
            images, targets = batch.images, batch.labels
            if (mixture := self._mix[batch.task]) and len(targets) > 1:
                images, targets = mixture(images, targets)
            with nullcontext() if i == len(batches) - 1 else accelerator.no_sync(self.net):
                with accelerator.autocast():
                    logits = self.net(images, *batch.route)
                losses = F.cross_entropy(
                    logits.float(), targets, reduction='none', label_smoothing=train.label_smoothing
                )
                loss = (losses * batch.weights).sum() * share
                if i == 0:
                    tuners = self.model.for_task(batch.task).tuners
                    loss = sum((p for tuner in tuners if (p := tuner.penalty()) is not None), start=loss)
                accelerator.backward(loss)
            meter.add(losses.detach(), logits.detach(), batch.labels, batch.weights)

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained tensors that are evaluated: their average where one is kept."""
        return self.average.state if self.average else self.model.trained_state()

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """What a checkpoint holds: the parts 'model', 'tuners', 'optimizer' and 'ema'."""
        names = {parameter: name for name, parameter in self.parameters.items()}
        average = dict(ema=self.average.state) if self.average else {}
        return dict(
            model=self.model.trained_state(),
            tuners=self.model.training_state(),
            optimizer=optimizer_state(self.optimizer, names),
            **average,
        )

    def restore(self, parts: dict[str, dict[str, torch.Tensor]], step: int) -> None:
        """Puts back the `state` that was saved before `step`; of a stage that begins there, the
        optimizer starts afresh.
        """
        wanted = dict(
            model=self.model.trained_state(), **(dict(ema=self.average.state) if self.average else {})
        )
        for part, tensors in dict(wanted, tuners=self.model.training_state(), best=wanted['model']).items():
            if part in wanted or part in parts:
                check_tensors(parts.get(part, {}), tensors, f'the checkpoint, {part}')
        self.model.load_trained_state(parts['model'], 'the checkpoint')
        copy_into(self.model.training_state(), parts.get('tuners', {}))
        if step != self._begins[self.stage]:
            load_optimizer_state(self.optimizer, self.parameters, parts.get('optimizer', {}))
        if self.average:
            copy_into(self.average.state, parts['ema'])

    def close(self) -> None:
        """Leaves the model as it was given, but for what trained."""
        self._unwrap()
        self._while_training.close()

    def _unwrap(self) -> None:
        """Takes off what accelerate put around the model; all parameters may train again."""
        if hasattr(self, 'net'):
            self.accelerator.unwrap_model(self.net, keep_fp32_wrapper=False)
        for parameter in self._all.values():
            parameter.requires_grad_()
        self._wrapped.close()


def _mixture(train: Train, num_classes: int) -> nn.Module | None:
    mixes = [
        kind(alpha=alpha, num_classes=num_classes)
        for kind, alpha in ((v2.MixUp, train.mixup), (v2.CutMix, train.cutmix))
        if alpha > 0
    ]
    return v2.RandomChoice(mixes) if mixes else None
