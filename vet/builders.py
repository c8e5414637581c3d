"""Builds datasets, model and trainer from a config.

`build_trainer` is the public way to train from Python.
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from vet.allowed import describe, fits
from vet.changes import modified
from vet.config import Plugin, Settings, read_settings
from vet.core.assemble import build_classifiers
from vet.core.budget import bounded
from vet.core.multitask import Classifier
from vet.core.objective import Objective, build_objective
from vet.datasets.base import Datasets, ImageData, by_task, objective_of, set_objective, targets_of
from vet.datasets.class_names import class_list, to_nfc
from vet.datasets.hold_out import hold_out
from vet.datasets.multitask import MultiTask
from vet.datasets.overlap import refuse_overlaps
from vet.datasets.wrappers import given_images
from vet.engine.saving.door import WorkFolder
from vet.engine.trainer import Trainer
from vet.errors import DataError, UnknownNameError, UserError, shown
from vet.hub.model_folder import load_model, read_configuration, save_model
from vet.hub.names import find_folder
from vet.own_backbone import backbone_to_train, entries_of
from vet.registry import BACKBONES, DATASETS, TASK
from vet.seeding import seed_everything
from vet.source import GIVEN, find_config

# the model section of a user's own network, beside its tuners
OWN = dict(backbone=dict(type='network', name='given'), head=dict(type='Pretrained'))
ARGUMENTS: dict[str, object] = dict(  # of build_trainer, and what each takes
    model=object,
    network=object,
    tuners=object,
    train=object,
    preprocessing=object,
    work_dir=Path | None,
    train_dataset=object,
    eval_dataset=object,
    cfg_modify_fn=Callable[..., object] | None,
    cfg_options=Mapping | None,
    seed=int | None,
    device=str | torch.device | int | None,
    data_root=Path | None,
    resume=Path | None,
)
OF_A_TASK = ('backbone', 'head', 'objective')  # keys of model.tasks.<task>
Classes = list[str] | dict[str | None, list[str]]  # the class names, or {task: class names}


def resolve_data_root(data_root: str | Path | None = None) -> Path:
    """The folder of the datasets: `data_root`, or the environment variable VET_DATA_ROOT, or ./data."""
    return Path(data_root or os.environ.get('VET_DATA_ROOT') or 'data').expanduser()


def build_dataset(entry: Plugin | Dataset | None, data_root: str | Path | None = None) -> Dataset | None:
    """The dataset of a config entry. A dataset passes through.

    If the entry has no `root`, its root is the data root.
    """
    if isinstance(entry, (str, Path)):
        raise UserError(
            f'a dataset is {str(entry)!r}; give a config entry, such as dict(type="ImageFolder", '
            f'path={str(entry)!r}), or a dataset object.'
        )
    if entry is None or not isinstance(entry, Mapping):
        return entry
    return DATASETS.build(dict(entry), root=resolve_data_root(data_root))


def build_datasets(
    settings: Settings, data_root: str | Path | None = None, **given: Dataset | None
) -> Datasets:
    """The datasets 'train', 'val' and 'test'. `given` datasets replace those of the config.

    If evaluation.select is 'best', or training may stop early, vet needs validation images. If there is no
    official validation split, a part of train is held out.
    """
    data: Datasets = {}
    for split in ('train', 'val', 'test'):
        dataset = given.get(split)
        data[split] = build_dataset(
            getattr(settings.dataset, split) if dataset is None else dataset, data_root
        )
    if data['train'] is None:
        raise UserError(
            'there is no training set: give dataset.train in the config, such as dict(type="ImageFolder", '
            'path=…), or train_dataset= to build_trainer.'
        )
    objectives = _objectives(settings, data['train'])
    set_objective(data['train'], objectives)
    if data['val'] is None and (settings.evaluation.select == 'best' or settings.train.early_stop):
        data['train'], data['val'] = _held_out(data['train'], settings.evaluation.holdout)
    classes = class_names(data['train'])
    for split in ('val', 'test'):
        if data[split] is not None:
            check_classes(names_of(data[split]), classes, f'dataset.{split}', 'dataset.train')
            set_objective(data[split], objectives)
            class_names(data[split])
            ours, theirs = (getattr(data[name], 'label_map', None) or {} for name in (split, 'train'))
            if unequal := [name for name in ours if name in theirs and ours[name] != theirs[name]]:
                raise UserError(
                    f'dataset.{split}.label_map gives {unequal[0]!r} the label {ours[unequal[0]]}, but '
                    f'dataset.train.label_map gives {theirs[unequal[0]]}; make them equal.'
                )
    for task, task_data in by_task(data['train']).items():
        objectives[task].fit(partial(targets_of, task_data))
    refuse_overlaps(data, chooses=settings.evaluation.select == 'best' or bool(settings.train.early_stop))
    return data


def _objectives(settings: Settings, dataset: object) -> dict[str | None, Objective]:
    """{task: objective}, as the config says, else as the dataset says."""
    found = {}
    for task, task_data in by_task(dataset).items():
        entry = settings.model.tasks.get(task or '', {}).get('objective') or settings.model.objective
        declared = getattr(task_data, 'objective', None)
        found[task] = build_objective(entry or declared, _names_of(task_data))
    return found


def _held_out(dataset: ImageData, share: float) -> tuple[object, object]:
    """Train and validation parts of a dataset. For several tasks: the parts of each task's dataset."""
    if not isinstance(dataset, MultiTask):
        return hold_out(dataset, share, seed=0)
    pairs = {task: hold_out(task_data, share, seed=0) for task, task_data in dataset.tasks.items()}
    return MultiTask({task: pair[0] for task, pair in pairs.items()}), MultiTask(
        {task: pair[1] for task, pair in pairs.items()}
    )


def check_classes(classes: Any, others: Any, name: str, other_name: str) -> None:
    """UserError if two datasets, or a dataset and a model, differ in classes or in tasks."""
    if classes == others or _composed(classes) == _composed(others):
        return
    if isinstance(classes, dict) and isinstance(others, dict) and set(classes) == set(others):
        task = next(task for task in classes if classes[task] != others[task])
        name = f'{name} ({task})'
        other_name = f'{other_name} ({task})'
        classes = classes[task]
        others = others[task]
    raise UserError(
        f'{name} has other classes ({len(classes)}: {", ".join(list(classes)[:3])}, …) than {other_name} '
        f'({len(others)}: {", ".join(list(others)[:3])}, …).'
    )


def _composed(classes: Classes) -> object:
    """Class names in the composed Unicode form. An older model may hold names in the form of macOS."""
    if isinstance(classes, dict):
        return {task: _composed(names) for task, names in classes.items()}
    return [to_nfc(str(name)) for name in classes]


def class_names(dataset: object) -> Classes:
    """The names of a dataset's classes, in the order of its labels; for several tasks, {task: names}.

    UserError if the dataset has no classes, or if a label is no place among them.
    """
    for task_data in by_task(dataset).values():
        _names_of(task_data)
        if getattr(task_data, 'targets', None) is not None:
            targets_of(task_data)
    return names_of(dataset)


def names_of(dataset: object) -> Classes:
    """The class names, or {task: class names}, as `class_names`. No target is checked."""
    if isinstance(dataset, MultiTask):
        return {task: _names_of(task_data) for task, task_data in dataset.tasks.items()}
    return _names_of(dataset)


def _names_of(dataset: Any) -> list[str]:
    if not hasattr(dataset, 'classes'):
        raise UserError(
            f'the dataset {type(dataset).__name__} has no `classes`; set it to the list of class names, in '
            'the order of the labels 0, 1, ….'
        )
    try:
        length = len(dataset)
    except (TypeError, ValueError) as error:
        raise UserError(
            f'the dataset {type(dataset).__name__} has no length: {error}. Give a dataset with `__len__` and '
            '`__getitem__`.'
        ) from error
    if not length:
        raise UserError(f'the dataset {type(dataset).__name__} is empty.')
    if isinstance(dataset.classes, str):
        raise UserError(
            f'the dataset {type(dataset).__name__} has `classes` {dataset.classes!r}; set it to a list of '
            'class names.'
        )
    return class_list(dataset.classes)


def build_model(
    settings: Settings, classes: Classes, objectives: Mapping[str | None, Objective] | None = None
) -> Classifier:
    """Backbone, tuners and head, initialised from the seed, for class names or {task: class names}.

    objectives: {task: objective}. None: those of the config.
    UserError if a head has another number of classes.
    """
    changed = settings.model.tasks
    named = classes if isinstance(classes, dict) else {None: classes}
    if unknown := [task for task in changed if task not in named]:
        raise UnknownNameError(
            'task in model.tasks',
            unknown[0],
            filter(None, named),
            'The datasets of type MultiTask name the tasks.',
        )
    parts: dict[Any, Any] = {}
    for task, names in named.items():
        changes = changed.get(task or '', {})
        if unknown_keys := set(changes) - set(OF_A_TASK):
            raise UnknownNameError(f'key in model.tasks.{task}', min(unknown_keys), OF_A_TASK)
        entry = changes.get('objective') or settings.model.objective
        objective = objectives[task] if objectives else build_objective(entry, names)
        head = changes.get('head', settings.model.head)
        given = head.get('num_classes')
        wanted = objective.num_outputs
        if given is not None and (type(given) is not int or given != wanted):
            raise UserError(
                f'model.head.num_classes is {given!r}, but the dataset has {wanted} classes; set '
                f'num_classes to {wanted}, or leave it out.'
            )
        backbone = changes.get('backbone', {})
        parts[task] = (
            BACKBONES.build(backbone if 'type' in backbone else {**settings.model.backbone, **backbone}),
            head,
            names,
            objective,
        )
    seed_everything(settings.seed, 'init')
    return build_classifiers(parts, settings.model.tuners, settings.model.shared)


def build_model_for(settings: Settings, dataset: object) -> Classifier:
    """The model of `build_model` for the classes and the objectives of a dataset of `build_datasets`."""
    objectives = {task: objective_of(task_data) for task, task_data in by_task(dataset).items()}
    return build_model(settings, class_names(dataset), objectives)


def build_trainer(
    name: str | Path = TASK, default_args: Mapping[str, object] | None = None, **kwargs: Any
) -> Trainer:
    """A Trainer with .train(), .evaluate() -> {'accuracy': 0..1, …} and .predict().

    name: the task, or the `model` below: build_trainer('configs/quickstart.py').
    default_args (or keyword arguments):
        model: a config path, a model folder, a model id that vet knows, or a config.
        network: in place of the config's model: a network of your own, with its classifier. vet trains it in
            place. vet.load(folder, network) opens the model folder. `model` is optional then.
        tuners: for `network`: a list, such as [vet.LoRA(rank=8)].
        train: for `network`: names of further parameters that train whole, as for vet.tune.
        preprocessing: for `network`: the network's images, such as dict(size=224, mean=…, std=…).
        work_dir: default work_dirs/<name of the config>/<time>.
        train_dataset, eval_dataset: datasets or config entries, in place of the config's train and test. A
            dataset has `classes`, or wraps such datasets (Subset, random_split, ConcatDataset), or is a
            Dataset of Hugging Face's `datasets` with an image and a class label.
        cfg_modify_fn: config -> config. vet calls this function before it reads the config.
        cfg_options: {'train.max_epochs': 5, …}. vet applies these after cfg_modify_fn.
        seed, device, data_root, resume ('auto' or a checkpoint's path).
    """
    if not fits(default_args, Mapping | None):
        raise UserError(f'default_args of build_trainer is {shown(default_args)}; give a dict of arguments.')
    args = {**(default_args or {}), **kwargs}
    if name != TASK:
        if 'model' in args or 'network' in args:
            raise UnknownNameError('task', name, [TASK])
        args['model'] = name
    for key, value in args.items():
        if key not in ARGUMENTS:
            raise UnknownNameError('argument of build_trainer', key, tuple(ARGUMENTS))
        if not fits(value, ARGUMENTS[key]):
            raise UserError(
                f'{key} of build_trainer is {shown(value)}; {key} must be {describe(ARGUMENTS[key])}.'
            )
    has_network = args.get('network') is not None
    if 'model' not in args and not has_network:
        raise UserError(
            'build_trainer needs model=…: a config path, a model folder or the id of a known model; or '
            'network=…: a network of your own.'
        )
    if not has_network and (alone := [key for key in ('tuners', 'train', 'preprocessing') if key in args]):
        raise UserError(
            f'{alone[0]} belongs to network=…, which is not given; give model.{alone[0]} in the config.'
            if alone[0] == 'tuners'
            else f'{alone[0]} belongs to network=…, which is not given; leave {alone[0]} out.'
        )
    source = args.get('model', {})
    config = find_config(source)
    if has_network:
        config.model = dict(tuners=entries_of(args.get('tuners')), **OWN)
    config = modified(config, args.get('cfg_modify_fn'), args.get('cfg_options'))
    given = {
        split: given_images(args.get(name))
        for split, name in dict(train='train_dataset', test='eval_dataset').items()
    }
    dataset: Any = config.setdefault('dataset', {})
    for split, entry in given.items():
        if entry is not None and isinstance(dataset, dict):
            dataset[split] = dict(entry) if isinstance(entry, Mapping) else GIVEN
            if split == 'train':
                dataset['val'] = None
    if args.get('seed') is not None:
        config.seed = args['seed']
    settings = read_settings(config)
    try:
        datasets: Datasets = build_datasets(settings, args.get('data_root'), **given)
    except DataError as error:
        raise _with_missing_weights(error, settings) from error
    named = isinstance(source, (str, os.PathLike)) and not has_network
    goes_on = not settings.model.finetune and named and Path(source).is_dir()
    if goes_on:
        folder = find_folder(source)
        model = load_model(folder)
        saved = read_configuration(folder)['model']
        for field in ('tuners', 'head'):
            if getattr(settings.model, field) != saved[field]:
                raise UserError(
                    "model.finetune is False, which continues the folder's model, but model."
                    f'{field} is changed to {getattr(settings.model, field)}; set finetune to True, or leave '
                    f'model.{field} unchanged.'
                )
        if model.classes != class_names(datasets['train']):
            raise UserError(
                "model.finetune is False, which continues with the folder's head, but the dataset has other "
                'classes; set finetune to True.'
            )
    elif has_network:
        model = _own_model(args, settings, datasets['train'])
    else:
        of_folder = named and Path(source).is_dir()  # the folder may come from a stranger
        with bounded(f'the model of {str(source)!r}') if of_folder else nullcontext():
            model = build_model_for(settings, datasets['train'])
    follow_objective(settings, model)
    given_dir = config.get('work_dir') if args.get('work_dir') is None else args['work_dir']
    if not fits(given_dir, ARGUMENTS['work_dir']):
        raise UserError(f'work_dir is {shown(given_dir)}; give the path of a folder.')
    work_dir = given_dir or new_work_dir(source if named else 'run')
    work = WorkFolder(work_dir, args.get('resume'), is_new=not given_dir)
    return Trainer(model, datasets, settings, work, save_model, args.get('device'), goes_on)


def _own_model(args: Mapping[str, Any], settings: Settings, dataset: object) -> Classifier:
    """The classifier of build_trainer(network=…): the network, its tuners, and what trains whole."""
    classes = class_names(dataset)
    if isinstance(classes, dict):
        raise UserError('network is one network for one task, but the dataset has several tasks.')
    objective = objective_of(dataset)
    backbone = backbone_to_train(args['network'], args.get('train', ()), args.get('preprocessing'))
    if backbone.num_features != objective.num_outputs:
        raise UserError(
            f'{type(backbone.network).__name__} gives {backbone.num_features} logits, but the dataset has '
            f'{objective.num_outputs} classes; build the network with {objective.num_outputs} classes.'
        )
    kept = {*backbone.moving, *(name for name, _ in backbone.network.named_parameters())}
    if whole := [name for name in backbone.whole if name in kept]:
        settings.model.tuners[:0] = [dict(type='Partial', names=whole)]
    seed_everything(settings.seed, 'init')
    parts = {None: (backbone, settings.model.head, classes, objective)}
    return build_classifiers(parts, settings.model.tuners)


def follow_objective(settings: Settings, model: Classifier) -> None:
    """Sets evaluation.metrics to the metrics of the objective, if the config names none.

    Several tasks with different metrics leave the setting at None.
    """
    metrics = {classifier.objective.metrics for classifier in model.tasks.values()}
    if settings.evaluation.metrics is None and len(metrics) == 1:
        settings.evaluation.metrics = list(metrics.pop())


def new_work_dir(source: str | os.PathLike) -> Path:
    """A new folder for one run: work_dirs/<name of the config>/<time>."""
    return Path('work_dirs') / Path(source).stem / time.strftime('%Y%m%d-%H%M%S')


def _with_missing_weights(error: DataError, settings: Settings) -> DataError:
    """The error of a missing dataset. If the backbone's weights are missing too, the message says both."""
    try:
        BACKBONES.build(settings.model.backbone)
    except DataError as also:
        return DataError(f'{error}\nAlso, {also}')
    return error
