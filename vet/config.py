"""The sections of a config and what may stand in them. A config file (mmengine's .py with `_base_`, .yaml or .json) is
loaded by `load_config`, changed by --cfg-options or cfg_modify_fn, and then read, once, by `read_settings`.

Imports registry and errors; every room may import it.
"""

import dataclasses
import difflib
import operator
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from vet.errors import UnknownNameError, UserError
from vet.registry import TUNERS

Plugin = dict[str, Any]     # dict(type=NAME, …): what a registry builds


@dataclass
class Model:
    backbone: Plugin
    tuners: list[Plugin] = field(default_factory=lambda: [dict(type='LinearProbe')])
    head: Plugin = field(default_factory=lambda: dict(type='Linear'))   # num_classes: the dataset's where not given
    tasks: dict[str, Plugin] = field(default_factory=dict)  # of dataset type MultiTask: {task: dict(backbone=…, head=…)}, what
    #                                 differs from backbone and head above
    shared: str = '.*'              # the tuners' parameters that are one for all tasks: a regular expression
    finetune: bool = True           # of a model folder: True starts its tuners and head anew, False goes on from them


@dataclass
class Data:
    train: Plugin | None = None     # may be given to build_trainer instead; evaluation needs none
    val: Plugin | None = None       # the official validation split; None: `evaluation.holdout` where one is needed
    test: Plugin | None = None      # read before step 0 and after the last step only, for reporting


@dataclass
class Dataloader:
    batch_size_per_gpu: int = 64
    workers_per_gpu: int = 2


@dataclass
class Schedule:
    type: str = 'CosineAnnealingLR'  # CosineAnnealingLR, LinearLR or ConstantLR, stepped per iteration
    T_max: int | None = None         # epochs; max_epochs where not given
    warmup_epochs: float = 0
    eta_min: float = 0               # the last learning rate, as a share of the first


@dataclass
class Checkpoints:
    every_steps: int | None = None   # also within epochs
    every_epochs: int = 1            # at the end of so many; after the last in any case. More where epochs take no time
    keep: int = 2


@dataclass
class Stage:
    """A part of the training with an optimizer and a schedule of its own: freeze, then unfreeze."""

    epochs: int
    train: str = '.*'                # regular expression over whole names of trained parameters, such as r'head\..*'
    optimizer: Plugin | None = None  # train.optimizer where not given
    head_lr: float | None = None     # train.head_lr where not given


@dataclass
class Train:
    max_epochs: int = 20             # with stages: the sum of theirs
    stages: list[Stage] = field(default_factory=list)   # none: one, of all parameters
    optimizer: Plugin = field(default_factory=lambda: dict(type='AdamW', lr=2e-3, weight_decay=1e-4))
    lr_scheduler: Schedule = field(default_factory=Schedule)
    head_lr: float | None = None     # the head's own learning rate; the tuners' where not given
    dataloader: Dataloader = field(default_factory=Dataloader)
    transform: list[Plugin] = field(default_factory=lambda: [dict(type='RandomResizedCrop'), dict(type='RandomHorizontalFlip')])
    mixup: float = 0                 # alpha of the Beta distribution; 0: off
    cutmix: float = 0
    label_smoothing: float = 0
    ema: float | None = None         # decay per step of the average of the trained parameters
    accumulate: int = 1              # batches per optimizer step
    clip_norm: float | None = None
    precision: str = 'auto'          # auto: bf16 where the hardware has it; fp32, bf16; fp8: bf16 with frozen products in float8
    compile: bool | str = False      # True, or a mode of torch.compile: 'reduce-overhead' replays CUDA graphs
    gradient_checkpointing: bool = False    # blocks are computed again in the backward pass: less memory, more time
    lean: bool = True                # the same but for rounding in less time: the last block computes the class token alone where
    #                                  that is pooled; attention in bf16 on a CPU is differentiated by whole products
    cache_features: bool = False     # keeps what reaches the first edited block, the second or later, in $VET_CACHE_DIR, else
    #                                  ~/.cache/vet, for all epochs and runs: of images that no random augmentation changes
    transform_on: str = 'pil'        # what of the transform follows Resize and CenterCrop sees PIL images; 'tensor': uint8 tensors,
    #                                  which takes less time; resized pixels differ by rounding, edges of rotated images by more;
    #                                  'device': those on the device that trains, where images of cache_images stay if a GPU's
    #                                  memory has room
    cache_images: bool = False       # keeps images decoded, and resized where the transform begins so, there too; results are equal
    deterministic: bool = False
    threads: int | None = None       # of each process on a CPU; None: torch's choice. 1 is best for a tiny network
    early_stop: int | None = None    # epochs without a better validation result; needs a validation split
    checkpoint: Checkpoints = field(default_factory=Checkpoints)
    log_every: int = 10              # steps


@dataclass
class Evaluation:
    metrics: str | list[str] = 'accuracy'
    dataloader: Dataloader = field(default_factory=lambda: Dataloader(batch_size_per_gpu=128))
    transform: list[Plugin] | None = None   # None: resize and centre crop, as the backbone was evaluated
    select: str = 'last'             # which epoch counts: 'last', or 'best' on the validation split
    holdout: float = 0.1             # where 'best' has no official validation split: this share of train, stratified
    every: int = 1                   # epochs between validations
    before: bool = True              # also report the test result before step 0


@dataclass
class Settings:
    """A config, complete and checked."""

    model: Model
    dataset: Data
    train: Train = field(default_factory=Train)
    evaluation: Evaluation = field(default_factory=Evaluation)
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they are written to config.json."""
        return asdict(self)


CHOICES = {'lr_scheduler.type': ('CosineAnnealingLR', 'LinearLR', 'ConstantLR'), 'precision': ('auto', 'fp32', 'bf16', 'fp8'),
           'compile': ('default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs'),
           'transform_on': ('pil', 'tensor', 'device'), 'select': ('last', 'best')}
RANGES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    ('at least 0', lambda value: value >= 0, (
        'train.max_epochs', 'train.lr_scheduler.warmup_epochs', 'train.mixup', 'train.cutmix',
        'train.dataloader.workers_per_gpu', 'evaluation.dataloader.workers_per_gpu')),
    ('at least 1', lambda value: value >= 1, (
        'train.dataloader.batch_size_per_gpu', 'train.accumulate', 'train.threads', 'train.log_every', 'train.early_stop',
        'train.lr_scheduler.T_max', 'train.checkpoint.keep', 'train.checkpoint.every_steps', 'train.checkpoint.every_epochs',
        'evaluation.dataloader.batch_size_per_gpu', 'evaluation.every')),
    ('above 0', lambda value: value > 0, ('train.clip_norm', 'train.head_lr')),
    ('from 0 to 1', lambda value: 0 <= value <= 1, ('train.lr_scheduler.eta_min',)),
    ('from 0 to below 1', lambda value: 0 <= value < 1, ('train.label_smoothing',)),
    ('above 0 and below 1', lambda value: 0 < value < 1, ('train.ema', 'evaluation.holdout')))
GRAPHS = ('reduce-overhead', 'max-autotune')        # modes of torch.compile
OWN_NAMES = ('work_dir', 'custom_imports', 'env_variables', 'default_scope')


def load_config(path: str | Path) -> Config:
    """The config in a file, with its `_base_` parts; its `custom_imports` are imported (also from beside the file)."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f'the config {str(path)!r} does not exist; give a .py, .yaml or .json file, such as configs/quickstart.py.')
    for folder in (str(path.parent.resolve()), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        return Config.fromfile(str(path))
    except UserError:
        raise
    except Exception as error:      # whatever the user's own Python does
        raise UserError(f'the config {str(path)!r} cannot be read: {type(error).__name__}: {error}') from error


def read_settings(config: Mapping[str, Any]) -> Settings:
    """Expands the short forms, fills in defaults and checks every key and type. UserError names what is wrong."""
    sections = {f.name for f in dataclasses.fields(Settings)}
    for name in config:             # what is no section is a helper variable of the config file
        if name not in sections and name not in OWN_NAMES and difflib.get_close_matches(name, sections, n=1, cutoff=0.75):
            raise UnknownNameError('section', name, sections)
    given = {name: _plain(config[name], name) for name in config if name in sections}
    if isinstance(given.get('model'), dict):
        _expand_lengths(given['model'])
    settings = _read(Settings, given, '')
    _check_ranges(settings)
    if isinstance(settings.evaluation.metrics, str):
        settings.evaluation.metrics = [settings.evaluation.metrics]
    if settings.train.stages:
        _set_epochs(settings.train, given.get('train') or {})
    if settings.train.lr_scheduler.T_max is None:
        settings.train.lr_scheduler.T_max = settings.train.max_epochs
    return settings


def _set_epochs(train: Train, given: Mapping[str, Any]) -> None:
    """Of training in stages: max_epochs is the sum of theirs, and each has a schedule of its own length."""
    total = sum(stage.epochs for stage in train.stages)
    for name, value in (('max_epochs', given.get('max_epochs')), ('lr_scheduler.T_max', train.lr_scheduler.T_max)):
        if value not in (None, total):
            raise UserError(f'train.{name} is {value}, but train.stages have {total} epochs together; leave it out, and set the '
                            f'epochs of each stage.')
    train.max_epochs = total


def _expand_lengths(model: dict[str, Any]) -> None:
    """model.backbone.lora_length = 10 becomes the entry dict(type='LoRA', rank=10) of model.tuners, or changes that one."""
    backbone = model.get('backbone')
    if not isinstance(backbone, dict):
        return
    short = {plugin.length_key[0]: (name, *plugin.length_key[1:]) for name in TUNERS.names()
             if getattr(plugin := TUNERS.find(name), 'length_key', None)}
    for key in [key for key in backbone if key.endswith('_length')]:
        if key not in short:
            raise UnknownNameError('short form in model.backbone', key, short)
        (name, argument, *aliases), value = short[key], backbone.pop(key)
        tuners = model.get('tuners') or []
        if not _fits(tuners, list[Plugin]):
            return                  # `_read` says what is wrong with it
        entry = next((tuner for tuner in tuners if tuner.get('type') == name), None)
        if not any(value) if isinstance(value, (list, tuple)) else not value:
            tuners = [tuner for tuner in tuners if tuner is not entry]
        elif entry is not None:
            kept = {key: given for key, given in entry.items() if key not in aliases}
            tuners = [{**kept, argument: value} if tuner is entry else tuner for tuner in tuners]
        else:
            tuners = [*tuners, {'type': name, argument: value}]
        model['tuners'] = tuners


def _read(section: type, given: Any, path: str) -> Any:
    """`given` as the dataclass `section`, every key known and every value of its type; what it leaves out is the default."""
    if not isinstance(given, dict):
        raise UserError(f'{path or "the config"} is {given!r}; it must be a dict with the keys {_names(section)}.')
    hints = typing.get_type_hints(section)
    defaults = {f.name: f.default_factory() for f in dataclasses.fields(section) if f.default_factory is not dataclasses.MISSING}
    values = {}
    for key, value in given.items():
        where = f'{path}.{key}' if path else key
        if key not in hints:
            raise UnknownNameError(f'key in {path}', key, hints)
        hint, default = hints[key], defaults.get(key)
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            default = asdict(default)
        if isinstance(value, dict) and isinstance(default, dict) and 'type' not in value:
            value = {**default, **value}
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            values[key] = _read(hint, value, where)
            continue
        inner: Any = typing.get_args(hint)[0] if typing.get_origin(hint) is list else None
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            if not isinstance(value, list):
                raise UserError(f'{where} is {value!r}; it must be a list of dicts with the keys {_names(inner)}.')
            values[key] = [_read(inner, entry, f'{where}[{i}]') for i, entry in enumerate(value)]
            continue
        if not _fits(value, hint):
            raise UserError(f'{where} is {value!r}; it must be {_describe(hint)}.')
        choices = next((c for name, c in CHOICES.items() if f'.{where}'.endswith(f'.{name}')), None)
        if choices and isinstance(value, str) and value not in choices:
            raise UnknownNameError(where, value, choices)
        values[key] = value
    missing = [f.name for f in dataclasses.fields(section) if f.name not in values
               and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    if missing:
        raise UserError(f'{path or "the config"} lacks {", ".join(missing)}; its keys are {_names(section)}.')
    return section(**values)


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is list:
        return isinstance(value, (list, tuple)) and all(_fits(v, typing.get_args(hint)[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return value is None if hint is type(None) else isinstance(value, hint)


def _describe(hint: Any) -> str:
    names = {int: 'a whole number', float: 'a number', str: 'a text', bool: 'True or False', type(None): 'None'}
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return ' or '.join(_describe(option) for option in typing.get_args(hint))
    return names.get(hint) or ('a list' if origin is list else 'a dict with a "type"')


def _names(section: type) -> str:
    return ', '.join(f.name for f in dataclasses.fields(section))


def _check_ranges(settings: Settings) -> None:
    for i, stage in enumerate(settings.train.stages):
        if stage.epochs < 1:
            raise UserError(f'train.stages[{i}].epochs is {stage.epochs}; it must be at least 1.')
        if stage.head_lr is not None and not stage.head_lr > 0:
            raise UserError(f'train.stages[{i}].head_lr is {stage.head_lr}; it must be above 0.')
    for where, pattern in [('model.shared', settings.model.shared), *(
            (f'train.stages[{i}].train', stage.train) for i, stage in enumerate(settings.train.stages))]:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f'{where} is {pattern!r}, not a regular expression: {error}. ".*" stands for anything.') from error
    for allowed, is_right, names in RANGES:
        for name in names:
            value = operator.attrgetter(name)(settings)
            if value is not None and not is_right(value):
                raise UserError(f'{name} is {value}; it must be {allowed}.')
    train = settings.train
    if train.compile in GRAPHS and train.accumulate > 1:
        raise UserError(f'train.compile is {train.compile!r}, which replays CUDA graphs: a batch writes over the gradients of the '
                        f'last; train.accumulate is {train.accumulate}. Set that to 1, or train.compile to True.')


def _plain(value: Any, where: str) -> Any:
    """A section in what JSON can hold, as a copy: what is read is never the caller's own, and it can be saved with the model."""
    if isinstance(value, Mapping):
        return {key: _plain(inner, f'{where}.{key}') for key, inner in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [_plain(inner, f'{where}[{i}]') for i, inner in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str) and where.startswith('train.') and re.fullmatch(r'[+-]?\d+e[+-]?\d+', value):
        return float(value)         # YAML takes 1e-3 for a text
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(f'{where} is {value!r}; a config holds texts, numbers, lists and dicts, so that it can be saved. Register what '
                    f'is your own, and give its name.')
