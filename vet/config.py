"""The sections of a config and what may stand in them. A config file (mmengine's .py with `_base_`, .yaml or
.json) is loaded by `load_config`, changed by --cfg-options or cfg_modify_fn, and then read, once, by
`read_settings`.

Imports registry and errors; every room may import it.
"""

import ast
import dataclasses
import difflib
import inspect
import os
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Interval, MinLen
from mmengine.config import Config
from mmengine.fileio import BaseFileHandler, register_handler

from vet.allowed import Count, Dropout, Rate, Seed, Share, Text, choices, fits, must_be, without_floats
from vet.errors import UnknownNameError, UserError, shown
from vet.patterns import require_pattern
from vet.registry import BACKBONES, OPTIMIZERS, TUNERS

Epochs = Annotated[int, Interval(ge=1, le=100_000)]
Steps = Annotated[int, Interval(ge=1, le=10**8)]
Threads = Annotated[int, Interval(ge=1, le=4096)]
Between = Annotated[float, Interval(gt=0, lt=1)]
Plugin = dict[str, Any]  # dict(type=NAME, …): what a registry builds


@dataclass
class Model:
    backbone: Plugin
    tuners: list[Plugin] = field(default_factory=lambda: [dict(type='LinearProbe')])
    head: Plugin = field(
        default_factory=lambda: dict(type='Linear')
    )  # num_classes: the dataset's where not given
    tasks: dict[str, Plugin] = field(
        default_factory=dict
    )  # of dataset type MultiTask: {task: dict(backbone=…, head=…)}, what
    #                                 differs from backbone and head above
    shared: Text = '.*'  # the tuners' parameters that are one for all tasks: a regular expression
    finetune: bool = True  # of a model folder: True starts its tuners and head anew, False goes on from them


@dataclass
class Data:
    train: Plugin | None = None  # may be given to build_trainer instead; evaluation needs none
    val: Plugin | None = None  # the official validation split; None: `evaluation.holdout` where one is needed
    test: Plugin | None = None  # read before step 0 and after the last step only, for reporting


@dataclass
class Dataloader:
    batch_size_per_gpu: Count = 64
    workers_per_gpu: Annotated[int, Interval(ge=0, le=1024)] = 2


@dataclass
class Schedule:
    type: Literal['CosineAnnealingLR', 'LinearLR', 'ConstantLR'] = (
        'CosineAnnealingLR'  # stepped per iteration
    )
    T_max: Epochs | None = None  # epochs; max_epochs where not given
    warmup_epochs: Annotated[float, Interval(ge=0, le=100_000)] = (
        0  # at most max_epochs; of stages, at most each stage's
    )
    eta_min: Share = 0  # the last learning rate, as a share of the first


@dataclass
class Checkpoints:
    every_steps: Steps | None = None  # also within epochs
    every_epochs: Epochs = (
        1  # at the end of so many; after the last in any case. More where epochs take no time
    )
    keep: Count = 2


@dataclass
class Stage:
    """A part of the training with an optimizer and a schedule of its own: freeze, then unfreeze."""

    epochs: Epochs
    train: Text = '.*'  # regular expression over whole names of trained parameters, such as r'head\..*'
    optimizer: Plugin | None = None  # train.optimizer where not given
    head_lr: Rate | None = None  # train.head_lr where not given


@dataclass
class Train:
    max_epochs: Annotated[int, Interval(ge=0, le=100_000)] = 20  # with stages: the sum of theirs
    stages: list[Stage] = field(default_factory=list)  # none: one, of all parameters
    optimizer: Plugin = field(default_factory=lambda: dict(type='AdamW', lr=2e-3, weight_decay=1e-4))
    lr_scheduler: Schedule = field(default_factory=Schedule)
    head_lr: Rate | None = None  # the head's own learning rate; the tuners' where not given
    dataloader: Dataloader = field(default_factory=Dataloader)
    transform: list[Plugin] = field(
        default_factory=lambda: [dict(type='RandomResizedCrop'), dict(type='RandomHorizontalFlip')]
    )
    mixup: Annotated[float, Interval(ge=0, le=1000)] = 0  # alpha of the Beta distribution; 0: off
    cutmix: Annotated[float, Interval(ge=0, le=1000)] = 0
    label_smoothing: Dropout = 0
    ema: Between | None = None  # decay per step of the average of the trained parameters
    #                                  after step s (0, 1, …) it is at most (1 + s) / (10 + s): the average
    # forgets the start
    accumulate: Count = 1  # batches per optimizer step
    clip_norm: Annotated[float, Interval(ge=1e-8, le=1e8)] | None = None
    # auto: bf16 where the hardware has it; fp8: bf16 with frozen products in float8
    precision: Literal['auto', 'fp32', 'bf16', 'fp8'] = 'auto'
    # True, or a mode of torch.compile: 'reduce-overhead' replays CUDA graphs
    compile: bool | Literal['default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs'] = (
        False
    )
    gradient_checkpointing: bool = (
        False  # blocks are computed again in the backward pass: less memory, more time
    )
    lean: bool = (
        True  # the same but for rounding in less time: the last block computes the class token alone where
    )
    #                                  that is pooled; attention in bf16 on a CPU is differentiated by whole
    # products
    cache_features: bool = (
        False  # keeps what reaches the first edited block, the second or later, in $VET_CACHE_DIR, else
    )
    #                                  ~/.cache/vet, for all epochs and runs: of images that no random
    # augmentation changes
    transform_on: Literal['pil', 'tensor', 'device'] = 'pil'
    #                                  what of the transform follows Resize and CenterCrop sees PIL images;
    # 'tensor': uint8 tensors,
    #                                  which takes less time; resized pixels differ by rounding, edges of
    # rotated images by more;
    #                                  'device': those on the device that trains, where images of cache_images
    # stay if a GPU's
    #                                  memory has room
    cache_images: bool = (
        False  # keeps images decoded, and resized where the transform begins so, there too; results are equal
    )
    deterministic: bool = False
    threads: Threads | None = (
        None  # of each process on a CPU; None: torch's choice. 1 is best for a tiny network
    )
    early_stop: Epochs | None = None  # epochs without a better validation result; needs a validation split
    checkpoint: Checkpoints = field(default_factory=Checkpoints)
    log_every: Steps = 10  # steps


@dataclass
class Evaluation:
    metrics: Text | Annotated[list[Text], MinLen(1)] = 'accuracy'
    dataloader: Dataloader = field(default_factory=lambda: Dataloader(batch_size_per_gpu=128))
    transform: Annotated[list[Plugin], MinLen(1)] | None = (
        None  # None: resize and centre crop, as the backbone was evaluated
    )
    select: Literal['last', 'best'] = 'last'  # which epoch counts: 'last', or 'best' on the validation split
    holdout: Between = 0.1  # where 'best' has no official validation split: this share of train, stratified
    every: Epochs = 1  # epochs between validations
    before: bool = True  # also report the test result before step 0


@dataclass
class Settings:
    """A config, complete and checked."""

    model: Model
    dataset: Data
    train: Train = field(default_factory=Train)
    evaluation: Evaluation = field(default_factory=Evaluation)
    seed: Seed = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they are written to config.json."""
        return asdict(self)


GRAPHS = ('reduce-overhead', 'max-autotune')  # modes of torch.compile
# other projects' names
ELSEWHERE = dict(
    learning_rate='lr', num_workers='workers_per_gpu', wd='weight_decay', num_epochs='max_epochs'
)
DEPTH, LONG = 40, 100_000  # of the values in a config
OWN_NAMES = ('work_dir', 'custom_imports', 'env_variables', 'default_scope')


class SafeYaml(BaseFileHandler):
    """YAML of plain values alone: a tag that would make or call a Python object is an error. mmengine's
    own handler runs it.
    """

    def load_from_fileobj(self, file: Any, **_: Any) -> Any:
        return yaml.safe_load(file)

    def dump_to_fileobj(self, obj: Any, file: Any, **options: Any) -> None:
        yaml.safe_dump(obj, file, **options)

    def dump_to_str(self, obj: Any, **options: Any) -> str:
        return yaml.safe_dump(obj, **options)


register_handler(['yaml', 'yml'])(SafeYaml)  # for this process: also the `_base_` files are read by it


def load_config(path: str | Path) -> Config:
    """The config in a file, with its `_base_` parts; its `custom_imports` are imported (also from beside the
    file).

    A .py file is code, and runs. A .yaml or .json file is data; but its `_base_` and `custom_imports` may
    name code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f'the config {str(path)!r} does not exist; give a .py, .yaml or .json file, such as '
            'configs/quickstart.py.'
        )
    for folder in (str(path.parent.resolve()), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        return Config.fromfile(str(path))
    except UserError:
        raise
    except Exception as error:  # whatever the user's own Python does
        raise UserError(
            f'the config {str(path)!r} cannot be read: {type(error).__name__}: {error}'
        ) from error


def read_settings(config: Mapping[str, Any]) -> Settings:
    """Expands the short forms, fills in defaults and checks every key and type. UserError names what is
    wrong.
    """
    sections = {f.name for f in dataclasses.fields(Settings)}
    helpers = [name for name in config if name not in sections and name not in OWN_NAMES]
    for name in helpers:
        if difflib.get_close_matches(str(name), sections, n=1, cutoff=0.75):
            raise UnknownNameError('section', name, sections)
    used = names_in_files(getattr(config, 'filename', None)) if helpers else set()
    for name in helpers:
        if name not in used and (near := nearest_settings(str(name))):
            raise UnknownNameError(
                'section',
                name,
                sections,
                'At the top of a config this name would change nothing. (A helper '
                'variable of a config file has a name that no setting has, or the file uses it.)',
                near,
            )
    given = {name: _plain(config[name], name) for name in config if name in sections}
    if isinstance(given.get('model'), dict):
        expand_short_forms(
            given['model'], 'refuse both' if getattr(config, 'filename', None) else 'refuse contradictions'
        )
    settings = _read(Settings, given, '')
    _check_together(settings)
    if isinstance(settings.evaluation.metrics, str):
        settings.evaluation.metrics = [settings.evaluation.metrics]
    if settings.train.stages:
        _set_epochs(settings.train, given.get('train') or {})
    if settings.train.lr_scheduler.T_max is None:
        settings.train.lr_scheduler.T_max = settings.train.max_epochs
    return settings


def names_in_files(path: str | Path | None) -> set[str]:
    """The names that a config file, or one of its `_base_` files, uses. None: no file."""
    if path is None or not Path(path).is_file():
        return set()
    text = Path(path).read_text(encoding='utf-8', errors='replace')
    used = set(re.findall(r'_base_\.(\w+)', text))
    if Path(path).suffix != '.py':
        return used
    tree = ast.parse(text)
    used |= {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == '_base_'
        ):
            for base in (part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant)):
                used |= names_in_files(Path(path).parent / str(base))
    return used


def nearest_settings(name: str) -> list[str]:
    """The full paths of the settings that a wrong path may mean: first those that end so, then those
    whose last part is alike.
    """
    paths = list(dict.fromkeys(_paths(Settings)))
    ends = [path for path in paths if path.endswith(f'.{name}')]
    last = name.rpartition('.')[2].lower()
    last = ELSEWHERE.get(last, last)
    words = [path for path in paths if f'_{last}_' in f'_{path.rpartition(".")[2].lower()}_']
    own = {path.rpartition('.')[2].lower(): path for path in reversed(paths)}
    alike = [own[key] for key in difflib.get_close_matches(last, own, n=2, cutoff=0.75)]
    return (ends or words or alike)[:3]


def _paths(section: type, above: str = '') -> Iterator[str]:
    """The dotted path of each setting, and of those arguments of plugins that most configs give."""
    for name, hint in typing.get_type_hints(section).items():
        yield f'{above}{name}'
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _paths(hint, f'{above}{name}.')
    if section is Model:
        backbone = inspect.signature(BACKBONES.find('timm')).parameters
        yield from (f'{above}backbone.{name}' for name in ('type', *backbone, *short_forms()))
        yield from (f'{above}head.{name}' for name in ('type', 'num_classes', 'dropout'))
    if section is Train:
        optimizer = inspect.signature(OPTIMIZERS.find('AdamW')).parameters
        yield from (
            f'{above}optimizer.{name}' for name in ('type', *optimizer, 'momentum') if name != 'params'
        )


def _set_epochs(train: Train, given: Mapping[str, Any]) -> None:
    """Of training in stages: max_epochs is the sum of theirs, and each has a schedule of its own length."""
    total = sum(stage.epochs for stage in train.stages)
    for name, value in (
        ('max_epochs', given.get('max_epochs')),
        ('lr_scheduler.T_max', train.lr_scheduler.T_max),
    ):
        if value not in (None, total):
            raise UserError(
                f'train.{name} is {value}, but train.stages have {total} epochs together. Set the epochs of '
                f'each stage, and train.{name} to {total}, or leave it out.'
            )
    train.max_epochs = total


def short_forms() -> dict[str, tuple[str, ...]]:
    """Each short form in model.backbone: the tuner, its argument, and other names of the argument."""
    return {
        plugin.length_key[0]: (name, *plugin.length_key[1:])
        for name in TUNERS.names()
        if getattr(plugin := TUNERS.find(name), 'length_key', None)
    }


def expand_short_forms(model: dict[str, Any], beside: str = 'change') -> None:
    """model.backbone.lora_length = 10 becomes the entry dict(type='LoRA', rank=10) of model.tuners; 0 takes
    the entry out.

    beside: what happens where model.tuners is given beside a short form. 'change': the short form was given
        last; it changes the entry of its tuner. 'refuse contradictions': both were given at once; the entry
        must not say otherwise. 'refuse both': of a file, whose `_base_` may have given one of them.
    """
    for task, part in (model['tasks'] if isinstance(model.get('tasks'), dict) else {}).items():
        own = part.get('backbone') if isinstance(part, dict) else None
        for key in own if isinstance(own, dict) else ():
            if key in short_forms():
                raise UserError(
                    f'model.tasks.{task}.backbone has {key}, but the tuners are the same for all tasks; give '
                    f'{key} in model.backbone.'
                )
    backbone = model.get('backbone')
    if not isinstance(backbone, dict):
        return
    for key in [key for key in backbone if str(key).endswith('_length')]:
        short = short_forms()
        if key not in short:
            raise UnknownNameError('short form in model.backbone', key, short)
        (name, argument, *aliases), value = short[key], backbone.pop(key)
        tuners = model.get('tuners') or []
        if value is None or not fits(tuners, list[Plugin]):
            continue  # not given; or `_read` says what is wrong with the tuners
        is_nothing = value in (0, []) or isinstance(value, (list, tuple)) and not any(value)
        entry = next((tuner for tuner in tuners if tuner.get('type') == name), None)
        differs = (
            entry is not None and entry.get(argument, entry.get(aliases[0]) if aliases else None) != value
        )
        if beside == 'refuse both' and tuners and not is_nothing or beside != 'change' and differs:
            raise UserError(
                f'model.tuners is {shown(tuners)}, and model.backbone.{key} is {shown(value)}, which is '
                f'short for dict(type={name!r}, {argument}={shown(value)}) there. Give one of them: write '
                f'the entry in model.tuners and set {key}=None, or leave model.tuners out.'
            )
        if is_nothing:
            tuners = [tuner for tuner in tuners if tuner is not entry]
        elif entry is not None:
            kept = {key: given for key, given in entry.items() if key not in aliases}
            tuners = [{**kept, argument: value} if tuner is entry else tuner for tuner in tuners]
        else:
            tuners = [*tuners, {'type': name, argument: value}]
        model['tuners'] = tuners


def _read(section: type, given: Any, path: str) -> Any:
    """`given` as the dataclass `section`, every key known and every value of its type; what it leaves
    out is the default.
    """
    if not isinstance(given, dict):
        raise UserError(
            f'{path or "the config"} is {shown(given)}; it must be a dict with the keys {_names(section)}.'
        )
    hints = typing.get_type_hints(section, include_extras=True)
    defaults = {
        f.name: f.default_factory()
        for f in dataclasses.fields(section)
        if f.default_factory is not dataclasses.MISSING
    }
    values = {}
    for key, value in given.items():
        where = f'{path}.{key}' if path else key
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.5)
            raise UnknownNameError(
                f'key in {path or "the config"}', key, hints, near=near or nearest_settings(str(key))
            )
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
                raise UserError(
                    f'{where} is {shown(value)}; it must be a list of dicts with the keys {_names(inner)}.'
                )
            values[key] = [_read(inner, entry, f'{where}[{i}]') for i, entry in enumerate(value)]
            continue
        if not fits(value, hint):
            if isinstance(value, str) and (names := choices(hint)):
                raise UnknownNameError(where, value, names)
            raise UserError(f'{where} is {shown(value)}; it must be {must_be(value, hint)}.')
        is_number = isinstance(value, int) and not isinstance(value, bool)
        values[key] = (
            float(value) if is_number and not fits(value, without_floats(hint)) else value
        )  # mixup=1 is mixup=1.0
    missing = [
        f.name
        for f in dataclasses.fields(section)
        if f.name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f'{path or "the config"} lacks {", ".join(missing)}; its keys are {_names(section)}.')
    return section(**values)


def _names(section: type) -> str:
    return ', '.join(f.name for f in dataclasses.fields(section))


def _check_together(settings: Settings) -> None:
    """What no single setting shows: settings that contradict each other, and patterns that are none."""
    train, schedule = settings.train, settings.train.lr_scheduler
    for where, pattern in [
        ('model.shared', settings.model.shared),
        *((f'train.stages[{i}].train', stage.train) for i, stage in enumerate(train.stages)),
    ]:
        require_pattern(pattern, where)
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
            f'gradients of the last; train.accumulate is {train.accumulate}. Set that to 1, or train.compile '
            'to True.'
        )


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """A section in what JSON can hold, as a copy: what is read is never the caller's own, and it can be
    saved with the model.
    """
    if depth > DEPTH:
        raise UserError(f'{where[:60]}… is nested more than {DEPTH} deep; no setting is.')
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise UserError(f'{where} has the key {wrong[0]!r}; keys are texts.')
        return {key: _plain(inner, f'{where}.{key}', depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple, range)):
        if len(value) > LONG:
            raise UserError(f'{where} has {len(value):,} values; a list in a config has at most {LONG:,}.')
        return [_plain(inner, f'{where}[{i}]', depth + 1) for i, inner in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str) and where.startswith('train.') and re.fullmatch(r'[+-]?\d+e[+-]?\d+', value):
        return float(value)  # YAML takes 1e-3 for a text
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and not abs(value) <= sys.float_info.max
    ):
        number = value if isinstance(value, float) else 'a whole number of more than 300 digits'
        raise UserError(f'{where} is {number}; a number in a config is finite.')
    if isinstance(value, float) and 0 < abs(value) < 1e-30:
        raise UserError(f'{where} is {value}; no setting is so small. Give 0, or a larger number.')
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(
        f'{where} is {shown(value)}; a config holds texts, numbers, lists and dicts, so that it can be '
        'saved. Register what is your own, and give its name.'
    )
