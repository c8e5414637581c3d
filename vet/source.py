"""Finds the source of a run that a user names: a config, a model folder, or the id of a known model."""

import copy
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vet.errors import UnknownNameError, UserError
from vet.files import JsonObject
from vet.hub.presets import preset
from vet.registry import Entry
from vet.shipped import SUFFIXES, find_file, shipped

if TYPE_CHECKING:  # a wrong name is refused before these are imported
    from vet.config import Settings
    from vet.mmengine_parts import Config
    from vet.registry import Registry

GIVEN = dict(type='given')  # in a recorded config: a dataset that the user gave as an object


def find_config(model: str | Path | Mapping[str, object]) -> 'Config':
    """The config of a config file, of a shipped config's name, of a model folder, or of a model id that vet
    knows. A given config is copied.
    """
    if isinstance(model, (str, os.PathLike)):
        return _of_folder(Path(model)) if Path(model).is_dir() else _of_name(model)
    from vet.mmengine_parts import Config

    if not isinstance(model, (Config, Mapping)):
        raise UserError(
            f'model is {model!r}; give a config path, a model folder, the id of a known model, or a config.'
        )
    try:
        return Config(
            {key: copy.deepcopy(model[key]) for key in model}, filename=getattr(model, 'filename', None)
        )
    except (TypeError, KeyError, RecursionError) as error:
        if isinstance(error, TypeError):
            from vet.config.plain import plain

            for key in model:
                plain(model[key], str(key))  # names the value that cannot be copied
        raise UserError(f'the config cannot be read: {type(error).__name__}: {error}') from error


def _of_name(model: str | os.PathLike) -> 'Config':
    source = _locate(model)
    from vet.config import load_config
    from vet.mmengine_parts import Config

    return load_config(source) if isinstance(source, Path) else Config(source)


def _locate(model: str | os.PathLike) -> Path | JsonObject:
    """The file of a config's path or name, or the config of a model id that vet knows."""
    names = {**shipped('configs'), **shipped('examples')}
    if Path(model).suffix in SUFFIXES:
        return find_file(Path(model), 'configs')
    return names.get(str(model)) or preset(str(model), names)


def _of_folder(path: Path) -> 'Config':
    from vet.hub.contents import require_run
    from vet.hub.model_folder import IDENTITY, read_configuration
    from vet.hub.names import find_folder
    from vet.mmengine_parts import Config

    configuration = read_configuration(find_folder(path))
    sections = {
        name: configuration[name]
        for name in ('dataset', 'train', 'evaluation', 'seed')
        if configuration.get(name)
    }
    require_run(sections, repr(str(path)))
    sections['dataset'] = {
        split: entry for split, entry in sections.get('dataset', {}).items() if entry != GIVEN
    }
    model = dict(configuration['model'], **_without_identity(configuration['model'], IDENTITY))
    if model.get('tasks'):
        model['tasks'] = {
            task: dict(entry, **_without_identity(entry, IDENTITY)) for task, entry in model['tasks'].items()
        }
    return Config(dict(model=model, **sections))


def _without_identity(entry: Entry, identity: Sequence[str]) -> JsonObject:
    """The entries of a folder that a new training makes anew, without what the old training found."""
    from vet.registry import OBJECTIVES

    backbone = {key: value for key, value in entry['backbone'].items() if key not in identity}
    if not entry.get('objective'):
        return dict(backbone=backbone)
    found = OBJECTIVES.find(entry['objective']['type']).found
    kept = {key: value for key, value in entry['objective'].items() if key not in found}
    return dict(backbone=backbone, objective=kept)


def check_source(model: str | Path, options: Mapping[str, object] | None) -> None:
    """UserError if a run of this config could not begin: an unknown config, key, plugin or option, or a wrong
    value.

    Imports no torch, unless the config does. So a command tells a user's mistake at once. A model folder is
    not read.
    """
    if Path(model).is_dir():
        return
    _locate(model)
    from vet.changes import modified
    from vet.config import read_settings

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the run reads the config again, and warns
        settings = read_settings(modified(find_config(model), None, options))
    for registry, entry in _plugins(settings):
        if entry and 'type' in entry:
            registry.require(entry['type'])
            _check_options(registry, entry)


def _check_options(registry: 'Registry', entry: Entry) -> None:
    """UnknownNameError for an option that the plugin's text does not name."""
    from vet.config import short_forms
    from vet.core.peft_names import PEFT_NAMES

    listed = registry.listed(entry['type'])
    if listed is None or listed.arguments is None:
        return
    allowed = [*listed.arguments, *(short_forms() if registry.name == 'backbone' else ())]
    allowed += PEFT_NAMES.get(entry['type'], ()) if registry.name == 'tuner' else ()
    for key in entry:
        if key != 'type' and key not in allowed:
            raise UnknownNameError(f'option of {registry.name} {entry["type"]!r}', key, allowed)


def _plugins(settings: 'Settings') -> Iterator[tuple['Registry', Entry | None]]:
    """The plugins that the settings name, except transforms and optimizers, whose names torch gives."""
    from vet.registry import BACKBONES, DATASETS, HEADS, HOOKS, METRICS, OBJECTIVES, SAMPLERS, TUNERS

    model = settings.model
    data = settings.dataset
    metrics = settings.evaluation.metrics
    yield from ((TUNERS, tuner) for tuner in model.tuners)
    whole = dict(backbone=model.backbone, head=model.head, objective=model.objective)
    for entry in (whole, *model.tasks.values()):
        yield BACKBONES, entry.get('backbone')
        yield HEADS, entry.get('head')
        yield OBJECTIVES, entry.get('objective')
    yield from ((DATASETS, split) for split in (data.train, data.val, data.test))
    yield SAMPLERS, settings.train.sampler
    yield from ((HOOKS, hook) for hook in settings.custom_hooks)
    for metric in [metrics] if isinstance(metrics, str) else metrics or []:
        yield METRICS, dict(type=metric)
