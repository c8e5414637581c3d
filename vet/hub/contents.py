"""Checks configuration.json of a model folder. A stranger may have written the folder.

vet checks the whole file before vet builds anything.
"""

import os
import stat
from collections.abc import Mapping
from typing import Any

from vet.core.permits import (
    CHECKPOINT,
    MOST,
    NOTHING,
    PATTERN,
    PREPROCESSING,
    SHA256,
    WORD,
    require_permitted,
    require_plain_settings,
    require_type,
    walk,
)
from vet.errors import DataError, shown
from vet.registry import BACKBONES, OBJECTIVES
from vet.transforms.torchvision import may_evaluate

# classes, and characters of a name
CLASSES = 100_000
NAME = 1_000
MODEL = ('backbone', 'tuners', 'head', 'objective', 'tasks', 'shared', 'finetune')
PIXELS = 4096  # the sum of all sizes in an evaluation's transforms
IDENTITY = dict(type=WORD, tag=NOTHING | WORD, sha256=SHA256, checkpoint=CHECKPOINT)
PROCESSES = dict(workers_per_gpu=256, threads=1024, batch_size_per_gpu=65_536)


def require_harmless(configuration: Any, source: str) -> None:
    """DataError if a configuration holds anything else than sizes, names and settings of a model.

    A configuration may name no URL, no callable, no option of a library that fetches or executes, and no path
    except that of a checkpoint.
    """
    model = configuration['model']
    for key in model:
        if key not in MODEL:
            raise DataError(
                f'{source} says model.{key}, which this vet does not read. Allowed: {", ".join(MODEL)}.'
            )
    tasks = model.get('tasks') or {}
    if (
        not isinstance(tasks, dict)
        or len(tasks) > MOST['tasks']
        or not all(task.isidentifier() for task in tasks)
    ):
        raise DataError(
            f'{source} has model.tasks {shown(tasks)}; allowed: a dict of at most {MOST["tasks"]} tasks, '
            'whose names are of letters, digits and "_".'
        )
    for where, entry in {
        'model': model,
        **{f'model.tasks.{task}': entry for task, entry in tasks.items()},
    }.items():
        if not isinstance(entry, dict):
            raise DataError(
                f'{source} has {shown(entry)} as {where}; allowed: a dict with "backbone" and "head".'
            )
        require_backbone(entry.get('backbone'), f'{source}: {where}.backbone')
        _require_plugin(entry.get('head'), f'{source}: {where}.head')
        if entry.get('objective') is not None:
            _require_objective(entry['objective'], f'{source}: {where}.objective')
    if len(model['tuners']) > MOST['tuners']:
        raise DataError(f'{source} has {len(model["tuners"]):,} tuners; allowed: {MOST["tuners"]}.')
    for i, tuner in enumerate(model['tuners']):
        _require_plugin(tuner, f'{source}: model.tuners[{i}]')
    if not PATTERN.allows(model.get('shared', '.*')):
        raise DataError(f'{source} has {shown(model["shared"])} as model.shared; allowed: {PATTERN.text}.')
    _require_classes(configuration['classes'], tasks, source)
    _require_preprocessing(configuration.get('preprocessing'), tasks, source)
    _require_evaluation(configuration.get('evaluation'), source)
    sha256 = configuration.get('sha256') or {}
    if not isinstance(sha256, dict) or not all(map(SHA256.allows, sha256.values())):
        raise DataError(
            f'{source} has {shown(sha256)} as sha256; allowed: a dict of file names, each with {SHA256.text}.'
        )


def require_backbone(entry: Any, where: str) -> None:
    """DataError if an entry of model.backbone holds a setting that its plugin does not permit to a folder."""
    rules = getattr(BACKBONES.find(require_type(entry, where)), 'permits', None)
    unruled = {key: value for key, value in entry.items() if rules is None and key not in IDENTITY}
    require_permitted(
        {key: value for key, value in entry.items() if key not in unruled},
        where,
        {**IDENTITY, **(rules or {})},
    )
    require_plain_settings(unruled, where)


def require_run(sections: Mapping[str, object], source: str) -> None:
    """DataError if the sections dataset, train and evaluation of a folder could do harm. A run may begin
    from these sections.

    The user says where datasets are: `root` is refused. A URL is refused, and a path to anything but a file
    or a folder (a pipe, a device).
    """
    for name in ('dataset', 'train', 'evaluation'):
        if not isinstance(sections.get(name, {}), dict):
            raise DataError(f'{source} has {shown(sections[name])} as {name}; allowed: a dict.')
    for where, value in walk(sections.get('dataset'), 'dataset'):
        if where.startswith('a key of') and value == 'root':
            raise DataError(
                f'{source} says where data are ({where[9:]}.root), which is for you to say: give --data-root '
                'DIR, or a dataset of your own.'
            )
        if isinstance(value, str) and ('://' in value or _is_special(value)):
            raise DataError(
                f'{source} has {shown(value)} as {where}; allowed: names, and paths of files and folders.'
            )
    for section in ('train', 'evaluation'):
        for where, value in walk(sections.get(section), section):
            most = PROCESSES.get(where.rpartition('.')[2])
            if most and isinstance(value, int) and value > most:
                raise DataError(f'{source} has {shown(value)} as {where}; allowed: at most {most:,}.')


def require_texts(value: object, source: str) -> None:
    """DataError for values that are nested too deep, and for text that no file can hold."""
    for _, inner in walk(value, source):
        if isinstance(inner, str) and not _is_text(inner):
            raise DataError(f'{source} holds the text {shown(inner)}, which is not Unicode.')


def _require_plugin(entry: Any, where: str) -> None:
    """Checks the entry of a tuner or a head.

    A dict with a type inside the entry is a backbone, such as the side network of SideTuning.
    """
    require_type(entry, where)
    for key, value in entry.items():
        if isinstance(value, dict) and 'type' in value:
            require_backbone(value, f'{where}.{key}')
        elif key != 'type':
            require_plain_settings(value, f'{where}.{key}')


def _require_objective(entry: Any, where: str) -> None:
    """Checks the entry of an objective: by the rules of its plugin, else as plain settings."""
    rules = getattr(OBJECTIVES.find(require_type(entry, where)), 'permits', None)
    settings = {key: value for key, value in entry.items() if key != 'type'}
    if rules is None:
        require_plain_settings(settings, where)
    else:
        require_permitted(settings, where, rules)


def _require_classes(classes: object, tasks: Mapping[str, object], source: str) -> None:
    parts = classes if tasks else {'': classes}
    if not isinstance(parts, dict) or (tasks and set(parts) != set(tasks)):
        raise DataError(f'{source} must have a list of class names for each task: {", ".join(tasks)}.')
    for names in parts.values():
        if (
            not isinstance(names, list)
            or len(names) > CLASSES
            or not all(isinstance(name, str) and len(name) <= NAME for name in names)
        ):
            raise DataError(
                f'{source} has {shown(names)} as classes; allowed: at most {CLASSES:,} names, each a text of '
                f'at most {NAME:,} characters.'
            )
        if len(set(names)) < len(names):
            raise DataError(
                f'{source} has a class name twice: {shown(names)}. Each class needs another name.'
            )


def _require_preprocessing(given: object, tasks: Mapping[str, object], source: str) -> None:
    parts = given if tasks and isinstance(given, dict) else {'': given}
    for task, settings in parts.items():
        if settings is not None and not PREPROCESSING.allows(settings):
            raise DataError(
                f'{source} has {shown(settings)} as preprocessing{task and "." + task}; allowed: '
                f'{PREPROCESSING.text}.'
            )


def _require_evaluation(evaluation: Any, source: str) -> None:
    """Checks the transforms of images.

    The sum of their sizes is limited, because each may enlarge the image.
    """
    if not isinstance(evaluation or {}, dict):
        raise DataError(f'{source} has {shown(evaluation)} as evaluation; allowed: a dict.')
    entries = (evaluation or {}).get('transform')
    if entries is None:
        return
    if not isinstance(entries, list) or len(entries) > MOST['transforms']:
        raise DataError(
            f'{source} has {shown(entries)} as evaluation.transform; allowed: a list of at most '
            f'{MOST["transforms"]}.'
        )
    pixels = 0
    for i, entry in enumerate(entries):
        where = f'{source}: evaluation.transform[{i}]'
        if not may_evaluate(require_type(entry, where)):
            raise DataError(
                f'{where} is {shown(entry["type"])}, which a model folder may not use to evaluate.'
            )
        require_plain_settings({key: value for key, value in entry.items() if key != 'type'}, where)
        pixels += sum(abs(value) for _, value in walk(entry, '') if type(value) is int)
    if pixels > PIXELS:
        raise DataError(
            f'{source} makes images of {pixels:,} pixels in evaluation.transform; allowed: {PIXELS:,} in all.'
        )


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_special(path: str) -> bool:
    """Whether the path exists, and is neither a file nor a folder."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
