"""Learner: one optimizer step, and all that must be saved to take the next one as if nothing had come between."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torchvision.transforms import v2

from vet.config import Train
from vet.core.model import ImageClassifier
from vet.engine.batches import Batch, Order
from vet.engine.checkpoint import load_optimizer_state, optimizer_state
from vet.engine.ema import Average, copy_into
from vet.engine.meter import Meter
from vet.engine.optim import build_optimizer, lr_factor
from vet.engine.seeding import seed_everything


class Learner:
    """Trains the trainable parameters of `model`, and no others, as `train` says, in the order that `order` gives."""

    def __init__(self, model: ImageClassifier, train: Train, order: Order, accelerator: Accelerator):
        self.model, self.train, self.order, self.accelerator = model, train, order, accelerator
        self.parameters = model.trainable()
        self.optimizer = build_optimizer(train.optimizer, self.parameters, train.head_lr)
        self.base_lrs = [group['lr'] for group in self.optimizer.param_groups]
        self.average = Average(model.trained_state(), train.ema) if train.ema else None
        self.net: nn.Module = accelerator.prepare_model(torch.compile(model) if train.compile else model)
        mixes = [kind(alpha=alpha, num_classes=len(model.classes))
                 for kind, alpha in ((v2.MixUp, train.mixup), (v2.CutMix, train.cutmix)) if alpha > 0]
        self._mix = v2.RandomChoice(mixes) if mixes else None

    def step(self, batches: list[Batch], step: int, meter: Meter) -> float:
        """Step number `step`: the gradient of the mean loss over all its images, however they are spread and batched.

        Returns the tuners' learning rate.
        """
        accelerator, train = self.accelerator, self.train
        factor = lr_factor(train.lr_scheduler, (step + 0.5) / self.order.steps)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs):
            group['lr'] = base * factor
        seed_everything(self.order.seed, 'step', step, accelerator.process_index)
        share = accelerator.num_processes / self.order.step_size(step)     # DDP takes the mean over processes, not images
        for i, batch in enumerate(batches):
            images, targets = batch.images, batch.labels
            if self._mix and len(targets) > 1:
                images, targets = self._mix(images, targets)
            with nullcontext() if i == len(batches) - 1 else accelerator.no_sync(self.net):
                with accelerator.autocast():
                    logits = self.net(images)
                losses = F.cross_entropy(logits.float(), targets, reduction='none', label_smoothing=train.label_smoothing)
                loss = (losses * batch.weights).sum() * share
                if i == 0:
                    loss = sum((p for tuner in self.model.tuners if (p := tuner.penalty()) is not None), start=loss)
                accelerator.backward(loss)
            meter.add(losses.detach(), logits.detach(), batch.labels, batch.weights)
        if train.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), train.clip_norm)
        self.optimizer.step()
        for tuner in self.model.tuners:
            tuner.on_step((step + 1) / (train.max_epochs * self.order.steps))
        self.optimizer.zero_grad()
        if self.average:
            self.average.update(self.model.trained_state())
        return self.base_lrs[0] * factor

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained tensors that are evaluated: their average where one is kept."""
        return self.average.state if self.average else self.model.trained_state()

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """What a checkpoint holds: the parts 'model', 'tuners', 'optimizer' and 'ema'."""
        names = {parameter: name for name, parameter in self.parameters.items()}
        average = dict(ema=self.average.state) if self.average else {}
        return dict(model=self.model.trained_state(), tuners=self.model.training_state(),
                    optimizer=optimizer_state(self.optimizer, names), **average)

    def restore(self, parts: dict[str, dict[str, torch.Tensor]]) -> None:
        """Puts `state` back."""
        self.model.load_trained_state(parts['model'], 'the checkpoint')
        copy_into(self.model.training_state(), parts.get('tuners', {}))
        load_optimizer_state(self.optimizer, self.parameters, parts.get('optimizer', {}))
        if self.average:
            copy_into(self.average.state, parts['ema'])

    def close(self) -> None:
        """Takes off what accelerate put around the model."""
        self.accelerator.unwrap_model(self.net, keep_fp32_wrapper=False)
        vars(self.model).pop('forward', None)       # of bf16, accelerate leaves the class's own behind, bound to this instance
