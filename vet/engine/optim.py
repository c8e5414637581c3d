"""Every optimizer of torch.optim by its name, its groups of parameters, and the learning rate of each
step.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Interval
from torch import nn

from vet.allowed import Count, Dropout, Rate, Share
from vet.config import Between, Plugin, Schedule
from vet.errors import UserError
from vet.registry import OPTIMIZERS

FUSED = ('Adam', 'AdamW', 'SGD')
# LBFGS calls the model again within a step. SparseAdam takes only sparse gradients.
LEFT_OUT = (torch.optim.LBFGS, torch.optim.SparseAdam)
Numbers = Annotated[float, Interval(ge=0, le=1e6)]
OPTIMIZERS.arguments.update(  # torch's signatures say no ranges
    alpha=Share,
    amsgrad=bool,
    betas=tuple[Dropout, Dropout],
    centered=bool,
    dampening=Share,
    decoupled_weight_decay=bool,
    eps=Annotated[float, Interval(ge=0, le=0.1)] | tuple[Share | None, Share],
    etas=tuple[Between, Annotated[float, Interval(gt=1, le=1000)]],
    initial_accumulator_value=Numbers,
    lambd=Share,
    lr=Rate,
    lr_decay=Share,
    momentum=Dropout,
    momentum_decay=Share,
    nesterov=bool,
    ns_steps=Count,
    rho=Share,
    step_sizes=tuple[Numbers, Numbers],
    t0=Numbers,
    weight_decay=Share,
)

for _name, _optimizer in vars(torch.optim).items():
    if (
        inspect.isclass(_optimizer)
        and issubclass(_optimizer, torch.optim.Optimizer)
        and _optimizer not in (torch.optim.Optimizer, *LEFT_OUT)
    ):
        OPTIMIZERS.register_module(name=_name, module=_optimizer)


def build_optimizer(
    config: Plugin, parameters: Mapping[str, nn.Parameter], head_lr: float | None = None
) -> torch.optim.Optimizer:
    """The optimizer over `parameters`, in groups: tuners and head ('head.…', at `head_lr`), with and without
    decay.

    There is no weight decay on vectors (biases, norms, scales), and on parameters with `no_weight_decay =
    True`.
    """
    if not parameters:
        raise UserError(
            'nothing trains: the tuners match no parameters and the head has none; add a tuner to '
            'model.tuners.'
        )
    lr = config.get('lr', 1e-3)
    if not isinstance(lr, int | float) or isinstance(lr, bool) or not lr > 0:
        raise UserError(f'train.optimizer.lr is {lr!r}; it must be a number above 0, such as 0.001.')
    if 'params' in config:
        raise UserError(
            'train.optimizer.params is given; the tuners and train.stages choose which parameters train.'
        )
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decays = parameter.ndim > 1 and not getattr(parameter, 'no_weight_decay', False)
        groups.setdefault((name.startswith('head.'), decays), []).append(parameter)
    listed = [
        dict(params=params, lr=(head_lr or lr) if is_head else lr)
        | ({} if decays else dict(weight_decay=0.0))
        for (is_head, decays), params in groups.items()
    ]
    try:
        return OPTIMIZERS.build({**config, 'lr': lr}, params=listed, **_fused(config, parameters))
    except (TypeError, ValueError) as error:
        raise (
            error
            if isinstance(error, UserError)
            else UserError(f'the optimizer {config} cannot be made: {error}')
        ) from error


def _fused(config: Plugin, parameters: Mapping[str, nn.Parameter]) -> dict[str, bool]:
    """Arguments for one kernel that updates all parameters, if torch has it and the config chooses no other
    way.
    """
    has_kernel = config.get('type') in FUSED and all(
        parameter.device.type in ('cpu', 'cuda') for parameter in parameters.values()
    )
    return (
        dict(fused=True)
        if has_kernel and not {'foreach', 'differentiable', 'capturable'} & set(config)
        else {}
    )


def lr_factor(schedule: Schedule, epoch: float) -> float:
    """The share of the base learning rate at `epoch` (fractional): linear warmup, then down to eta_min."""
    if epoch < schedule.warmup_epochs:
        return epoch / schedule.warmup_epochs
    assert schedule.T_max is not None
    passed = min(1.0, (epoch - schedule.warmup_epochs) / max(schedule.T_max - schedule.warmup_epochs, 1e-8))
    falls = dict(CosineAnnealingLR=(1 + math.cos(math.pi * passed)) / 2, LinearLR=1 - passed, ConstantLR=1.0)
    return schedule.eta_min + (1 - schedule.eta_min) * falls[schedule.type]
