"""Checks that need several settings: settings that contradict each other, and settings that follow from
others.
"""

from collections.abc import Mapping

from vet.config.sections import Settings, Train, Views
from vet.errors import UserError

GRAPHS = ('reduce-overhead', 'max-autotune')  # modes of torch.compile


def check_together(settings: Settings) -> None:
    """UserError for settings that contradict each other."""
    train = settings.train
    schedule = settings.train.lr_scheduler
    for name, epochs in [
        (f'train.stages[{i}].epochs', stage.epochs) for i, stage in enumerate(train.stages)
    ] or [('train.max_epochs', train.max_epochs)]:
        if schedule.warmup_epochs > epochs > 0:
            raise UserError(
                f'train.lr_scheduler.warmup_epochs is {schedule.warmup_epochs:g}, but {name} is {epochs}: '
                f'the learning rate would never reach its value. Set warmup_epochs to at most {epochs}, or '
                'train longer.'
            )
    if schedule.T_max is not None and not train.stages and schedule.type != 'ConstantLR':
        if schedule.T_max < train.max_epochs and schedule.eta_min == 0:
            raise UserError(
                f'train.lr_scheduler.T_max is {schedule.T_max}, but train.max_epochs is {train.max_epochs}: '
                f'the epochs after {schedule.T_max} would train with a learning rate of 0. Make them equal, '
                'or leave T_max out.'
            )
        if schedule.T_max < schedule.warmup_epochs and train.max_epochs:
            raise UserError(
                f'train.lr_scheduler.T_max is {schedule.T_max}, but warmup_epochs is '
                f'{schedule.warmup_epochs:g}; T_max counts the epochs of warmup too. Make T_max larger, or '
                'leave T_max out.'
            )
    metrics = settings.evaluation.metrics
    if isinstance(metrics, list) and len(set(metrics)) < len(metrics):
        raise UserError(f'evaluation.metrics is {metrics}; name each metric once.')
    if train.compile in GRAPHS and train.accumulate > 1:
        raise UserError(
            f'train.compile is {train.compile!r}, which replays CUDA graphs: a batch writes over the '
            f'gradients of the last batch; train.accumulate is {train.accumulate}. Set train.accumulate to '
            '1, or train.compile to True.'
        )
    if train.compile in GRAPHS and train.sam is not None:
        raise UserError(
            f'train.compile is {train.compile!r}, which replays CUDA graphs, but train.sam computes two '
            'gradients in a step. Set train.compile to True, or train.sam to None.'
        )
    if train.cache_features and settings.evaluation.tta != Views():
        raise UserError(
            'train.cache_features keeps one view of each image, but evaluation.tta shows several. Set '
            'train.cache_features to False, or leave evaluation.tta out.'
        )


def follow(settings: Settings, given: Mapping[str, object]) -> None:
    """Sets the settings that follow from other settings. given: the config's section `train`."""
    if isinstance(settings.evaluation.metrics, str):
        settings.evaluation.metrics = [settings.evaluation.metrics]
    if settings.train.stages:
        _set_epochs(settings.train, given)
    if settings.train.lr_scheduler.T_max is None:
        settings.train.lr_scheduler.T_max = settings.train.max_epochs or 1


def _set_epochs(train: Train, given: Mapping[str, object]) -> None:
    """For training in stages: max_epochs becomes the sum of the stages' epochs.

    UserError if the config says else.
    """
    total = sum(stage.epochs for stage in train.stages)
    for name, value in (
        ('max_epochs', given.get('max_epochs')),
        ('lr_scheduler.T_max', train.lr_scheduler.T_max),
    ):
        if value not in (None, total):
            raise UserError(
                f'train.{name} is {value}, but train.stages have {total} epochs together. Set the epochs of '
                f'each stage, and set train.{name} to {total} or leave train.{name} out.'
            )
    train.max_epochs = total
