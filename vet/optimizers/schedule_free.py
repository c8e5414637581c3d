"""Schedule-free optimizers, which need no falling learning rate. Source: Defazio et al. 2024,
https://arxiv.org/abs/2405.15682. The package schedulefree computes them.
"""

import torch

from vet.allowed import Dropout, Rate, Share
from vet.errors import UserError
from vet.optimizers.ranges import Between, Numbers
from vet.registry import OPTIMIZERS


@OPTIMIZERS.register_module()
def AdamWScheduleFree(
    params: object,
    lr: Rate = 0.0025,
    betas: tuple[Between, Dropout] = (0.9, 0.999),
    eps: Share = 1e-8,
    weight_decay: Share = 0.0,
    r: Numbers = 0.0,
    weight_lr_power: Numbers = 2.0,
) -> torch.optim.Optimizer:
    """AdamW without a schedule: x, the mean of the steps, is evaluated and saved.

    y = (1 - beta1) z + beta1 x; z takes an AdamW step with the gradient at y; x <- x + c (z - x).
    c is the weight of the step, lr_max ** weight_lr_power * step ** r, as a share of all weights so far.
    lr: larger than for AdamW: 1 to 10 times. train.lr_scheduler must be ConstantLR, and may have a warmup.
    betas: (beta1, beta2). beta2 is that of AdamW.
    eps, weight_decay: as those of AdamW.
    r, weight_lr_power: the powers in the weight of a step.
    """
    return _made('AdamWScheduleFree', **locals())


@OPTIMIZERS.register_module()
def RAdamScheduleFree(
    params: object,
    lr: Rate = 0.0025,
    betas: tuple[Between, Dropout] = (0.9, 0.999),
    eps: Share = 1e-8,
    weight_decay: Share = 0.0,
    r: Numbers = 0.0,
    weight_lr_power: Numbers = 2.0,
    silent_sgd_phase: bool = True,
) -> torch.optim.Optimizer:
    """RAdam without a schedule and without a warmup, as AdamWScheduleFree.

    lr, betas, eps, weight_decay, r, weight_lr_power: as those of AdamWScheduleFree.
    silent_sgd_phase: whether the first steps, in which RAdam has no variance yet, change nothing.
    """
    return _made('RAdamScheduleFree', **locals())


@OPTIMIZERS.register_module()
def SGDScheduleFree(
    params: object,
    lr: Rate = 1.0,
    momentum: Between = 0.9,
    weight_decay: Share = 0.0,
    r: Numbers = 0.0,
    weight_lr_power: Numbers = 2.0,
) -> torch.optim.Optimizer:
    """SGD without a schedule, as AdamWScheduleFree.

    lr: 10 to 50 times larger than for SGD.
    momentum: beta1 of AdamWScheduleFree.
    weight_decay, r, weight_lr_power: as those of AdamWScheduleFree.
    """
    return _made('SGDScheduleFree', **locals())


def _made(name: str, **given: object) -> torch.optim.Optimizer:
    try:
        import schedulefree
    except ImportError as error:
        raise UserError(
            f'the optimizer {name!r} needs the package schedulefree, which is not installed: '
            'pip install "vision-efficient-tuning[schedulefree]".'
        ) from error
    return getattr(schedulefree, name)(**given)
