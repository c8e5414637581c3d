"""Builds an optimizer with its groups of parameters, and gives the learning rate of each step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vet.config import Plugin, Schedule, Train
from vet.core.multitask import Classifier
from vet.errors import UserError
from vet.optimizers.two_points import TwoPoints
from vet.patterns import fits
from vet.registry import OPTIMIZERS

FUSED = ('Adam', 'AdamW', 'SGD')


@dataclass(frozen=True)
class Rule:
    """How one parameter trains: the factor of its learning rate, and its weight decay. None: the usual."""

    lr_factor: float = 1.0
    weight_decay: float | None = None


USUAL = Rule()


def rules_of(model: Classifier, train: Train) -> dict[str, Rule]:
    """{parameter: its rule}, as train.groups and train.layer_decay say. Empty if they say nothing.

    UserError for a pattern that fits no parameter, and for a layer decay without blocks.
    """
    named = model.trainable()
    for i, group in enumerate(train.groups):
        if not any(fits(group.params, name) for name in named):
            raise UserError(
                f'train.groups[{i}].params is {group.params!r}, which fits none of the {len(named)} '
                f'parameters, such as {", ".join([*named][:2])} and {[*named][-1]}. Give a regular '
                'expression for whole names.'
            )
    decays = layer_factors(model, train.layer_decay) if train.layer_decay is not None else {}
    rules = {}
    for name, parameter in named.items():
        matching = next((group for group in train.groups if fits(group.params, name)), None)
        factor = decays.get(parameter, 1.0) * (matching.lr_factor if matching else 1.0)
        rules[name] = Rule(factor, matching.weight_decay if matching else None)
    return rules if train.groups or decays else {}


def layer_factors(model: Classifier, decay: float) -> dict[nn.Parameter, float]:
    """{parameter of a tuner: decay ** (blocks - d)}, for a parameter in block d = 0, 1, ….

    d is -1 before the first block. Behind the blocks, and in the head, the factor is 1. Source: BEiT (Bao et
    al. 2022), and timm.optim.param_groups_layer_decay, in which the last norm belongs to the last block.
    """
    factors: dict[nn.Parameter, float] = {}
    for classifier in model.tasks.values():
        sites = classifier.backbone.sites
        if not sites.blocks:
            raise UserError(
                f'train.layer_decay is {decay:g}, but {sites.family} has no blocks by which the learning '
                "rate could fall. Leave train.layer_decay out, or give the role 'block' in "
                'model.backbone.roles.'
            )
        for tuner in classifier.tuners:
            depths = tuner.depths()
            for name, parameter in tuner.trainable():
                factors.setdefault(parameter, decay ** (len(sites.blocks) - depths[name]))
    return factors


def build_optimizer(
    config: Plugin,
    parameters: Mapping[str, nn.Parameter],
    head_lr: float | None = None,
    rules: Mapping[str, Rule] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer over `parameters`, in groups: tuners and head ('head.…', at `head_lr`), with and without
    decay, and by `rules`, see `rules_of`.

    There is no weight decay on vectors (biases, norms, scales), and on parameters with `no_weight_decay =
    True`, unless a rule gives a weight decay.
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
    groups: dict[tuple[bool, bool, Rule], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        rule = (rules or {}).get(name, USUAL)
        decays = parameter.ndim > 1 and not getattr(parameter, 'no_weight_decay', False)
        groups.setdefault((name.startswith('head.'), decays, rule), []).append(parameter)
    listed = []
    for (is_head, decays, rule), params in groups.items():
        group: dict[str, Any] = dict(params=params, lr=((head_lr or lr) if is_head else lr) * rule.lr_factor)
        if rule.weight_decay is not None or not decays:
            group['weight_decay'] = rule.weight_decay or 0.0
        listed.append(group)
    optimizer = _built({**config, 'lr': lr}, listed, parameters)
    if any(rule.weight_decay is not None for *_, rule in groups) and 'weight_decay' not in optimizer.defaults:
        raise UserError(
            f'train.groups gives a weight decay, but the optimizer {config.get("type")!r} has none. Leave '
            'weight_decay out of train.groups, or choose another optimizer.'
        )
    return optimizer


def _built(
    config: Plugin, groups: list[dict[str, Any]], parameters: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer over `groups`. UserError that names the parameters that the optimizer does not take."""

    def made(params: object) -> torch.optim.Optimizer | Exception:
        try:
            return OPTIMIZERS.build(config, params=params, **_fused(config, parameters))
        except Exception as error:  # an optimizer of a user may raise any error
            return error

    found = made(groups)
    if not isinstance(found, Exception):
        return found
    shapes = {tuple(parameter.shape): name for name, parameter in parameters.items()}
    refused = {
        shape: name for shape, name in shapes.items() if isinstance(made([parameters[name]]), Exception)
    }
    kind = config.get('type')
    if refused and len(refused) < len(shapes):
        shape, name = next(iter(refused.items()))
        count = sum(tuple(parameter.shape) in refused for parameter in parameters.values())
        raise UserError(
            f'the optimizer {kind!r} does not take {count} of the {len(parameters)} parameters that train, '
            f'such as {name!r} with the shape {shape}. Choose another optimizer: `vet list optimizers` shows '
            f'all. (The optimizer says: {found.__cause__ or found})'
        ) from found
    if isinstance(found, UserError):
        raise found
    raise UserError(
        f'the optimizer {kind!r} fails at its start: {type(found).__name__}: {found}. Correct the optimizer, '
        'or choose another: `vet list optimizers` shows all.'
    ) from found


def refuse_unfit_schedule(
    optimizer: torch.optim.Optimizer, schedule: Schedule, trained: Mapping[str, torch.Tensor]
) -> None:
    """UserError if a schedule-free optimizer gets a schedule, or statistics of weights that no one saves."""
    if not isinstance(optimizer, TwoPoints):
        return
    name = type(optimizer).__name__
    if schedule.type != 'ConstantLR':
        raise UserError(
            f'the optimizer {name!r} needs no falling learning rate, but train.lr_scheduler.type is '
            f"{schedule.type!r}. Set train.lr_scheduler to dict(type='ConstantLR'); a warmup is allowed."
        )
    if statistics := [key for key in trained if key.endswith('running_mean')]:
        raise UserError(
            f'the optimizer {name!r} steps with some weights and evaluates others. Running statistics such '
            f'as {statistics[0]!r} fit only the weights of the steps. Choose another optimizer, or tuners '
            'that train no batch norm.'
        )


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
