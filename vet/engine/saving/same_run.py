"""Checks that a run continues with the config, classes, images and weights with which it was begun.

work_folder.py asks here before a run continues.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import vet
from vet.config import Evaluation, Train
from vet.config.older import train_of_today
from vet.core.meanings import OLDER, of_today
from vet.engine.saving.checkpoint import has_older_entries
from vet.engine.saving.identity import changed_plugins, differences, other_versions
from vet.errors import DataError, TrainingError
from vet.files import JsonObject, read_json
from vet.log import warn
from vet.versions import is_newer

LONGER = {'train.max_epochs', 'train.lr_scheduler.T_max'}  # what differs if a run shall train further
# settings that a resumed run may change, because they change no weight
FREE = {
    'train.dataloader.workers_per_gpu',
    'evaluation.dataloader.workers_per_gpu',
    'train.log_every',
    'train.checkpoint.keep',
    'train.checkpoint.every_steps',
    'train.checkpoint.every_epochs',
    'train.trackers',
    'evaluation.report',
}


def check_config(folder: Path, config: JsonObject) -> bool:
    """Refuses to continue the run in `folder` with another config.

    Returns whether only train.max_epochs is larger than before.
    """
    path = folder / 'config.json'
    if not path.is_file():
        warn(f'{str(folder)!r} has no config.json. Whether the config is still the same is not known.')
        return False
    try:
        begun = read_json(path)
    except DataError as error:
        raise DataError(
            f'{error} The config of the run is not known. Begin anew in another work folder; or, if '
            f'you know that the config is still the same, remove {path.name}.'
        ) from error
    changed = sorted(_differences(_completed(begun), json.loads(json.dumps(config))) - FREE)
    if not changed:
        return False
    if set(changed) <= LONGER and _epochs(config) > _epochs(begun) > 0:
        return True
    raise TrainingError(
        f'the run in {str(folder)!r} was begun with another config: {", ".join(changed)} differ. '
        f'Resume with the config of the run ({path}), or begin anew in another work folder. To train '
        'further, resume and change only train.max_epochs to a larger number; or begin a run from the model '
        f'folder {str(folder / "output")!r} with model.finetune=False.{_newer(folder)}'
    )


def refuse_older_entries(checkpoint: Path, config: JsonObject) -> None:
    """TrainingError if the run was begun when one of its tuners was another method."""
    changed = sorted({entry.get('type') for entry in config['model']['tuners']} & set(OLDER))
    if changed and has_older_entries(checkpoint):
        today = dict(of_today(dict(type=changed[0])))
        raise TrainingError(
            f'an older vet began the run of {str(checkpoint)!r}. There, {changed[0]} was the method that is '
            f'now {today}. Begin anew in another work folder. vet can still read the model folder.'
        )


def check_identity(folder: Path, identity: Mapping[str, object]) -> None:
    """Refuses to continue the run in `folder` with other classes, data or backbone weights."""
    path = folder / 'identity.json'
    if not path.is_file():
        warn(
            f'{str(folder)!r} has no identity.json, because an older vet began the run. vet cannot know '
            'whether the classes, the images and the weights of the backbone are still the same.'
        )
        return
    now = json.loads(json.dumps(identity))
    try:
        before = read_json(path)
        changed = differences(before, now)
        versions = other_versions(before, now)
        plugins = changed_plugins(before, now)
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{str(path)!r} is damaged ({error}). Begin anew in another work folder; or, if you know '
            'that classes, images and weights are still the same, remove the file.'
        ) from error
    if changed:
        raise TrainingError(
            f'the run in {str(folder)!r} was begun with other data. The differences: {"; ".join(changed)}. '
            f'Restore the data, or begin anew in another work folder.{_newer(folder)}'
        )
    if versions:
        warn(
            f'the run was begun with other versions ({", ".join(versions)}); numbers may differ by '
            f'rounding.{_newer(folder)}'
        )
    for module in plugins:
        warn(
            f'the file of {module} has changed since the run in {str(folder)!r} was begun. The run goes on '
            'with the new code, so its result comes from both. To have a result of the new code alone, begin '
            'anew in another work folder.'
        )


def tell_of_device(folder: Path, environment: Mapping[str, object]) -> None:
    """Warns if the run in `folder` was begun on another device: train.precision='auto' follows the device."""
    try:
        before = read_json(folder / 'environment.json')['device']
    except (DataError, KeyError, TypeError):
        return
    if before != (now := environment['device']):
        warn(
            f'the run in {str(folder)!r} was begun on {before}, and goes on on {now}; numbers differ by '
            "rounding, and by the precision if train.precision is 'auto'."
        )


def _completed(begun: object) -> Any:
    """A config.json of an older vet, with the names of today, and the defaults of newer settings."""
    if not isinstance(begun, dict):
        return begun
    if isinstance(begun.get('train'), dict):
        begun = begun | dict(train=train_of_today(begun['train']))
    sections = {
        name: asdict(kind()) | begun[name]
        for name, kind in (('train', Train), ('evaluation', Evaluation))
        if isinstance(begun.get(name), dict)
    }
    return dict(custom_hooks=[]) | begun | sections


def _epochs(config: object) -> int:
    """train.max_epochs of a config.json. 0 if it has none."""
    train = config.get('train') if isinstance(config, dict) else None
    epochs = train.get('max_epochs') if isinstance(train, dict) else None
    return epochs if type(epochs) is int else 0


def _newer(folder: Path) -> str:
    """A sentence about a run that a newer version of vet began. '' for other runs."""
    try:
        made_by = str(read_json(folder / 'environment.json')['vet'])
    except (DataError, KeyError, TypeError):
        return ''
    if not is_newer(made_by):
        return ''
    return (
        f' The run was written by a newer version of vet ({made_by}; this is {vet.__version__}): update vet.'
    )


def _differences(a: object, b: object, path: str = '') -> set[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return {
            difference
            for key in {*a, *b}
            for difference in _differences(a.get(key), b.get(key), f'{path}.{key}'.lstrip('.'))
        }
    return set() if a == b else {path}
