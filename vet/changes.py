"""Changes to a config: first the user's function (cfg_modify_fn), then options, whose keys are dotted paths.

The last change wins. A change also updates the values that were derived from the old value. So no message
names a key that the user did not write.
"""

import copy
import dataclasses
import warnings
from collections.abc import Callable, Mapping

from vet.allowed import fits
from vet.config import Settings, expand_short_forms, nearest_settings, short_forms
from vet.config.plain import plain
from vet.errors import UnknownNameError, UserError, shown
from vet.mmengine_parts import Config

SECTIONS = tuple(f.name for f in dataclasses.fields(Settings))
EFFECTIVE = (*SECTIONS, 'work_dir')  # the first names of options; the command line has no helper variables


def modified(
    config: Config, modify: Callable[[Config], Config | None] | None, options: Mapping[str, object] | None
) -> Config:
    """`config` after the user's function and then `options`.

    UserError for a change that has no effect, or does not fit.
    """
    before = copy.deepcopy(_sections(config))
    if modify is not None:
        config = _after_function(config, modify, before)
    if options:
        _expand(config, 'refuse both' if config.filename else 'refuse contradictions')
    for key, value in (options or {}).items():
        _set(config, key, plain(value, f'the option {key}'))
        _expand(config, 'change')
    _take_along(config, before)
    return config


def _sections(config: Config) -> dict[str, object]:
    """The sections of a config. UserError for a value that a config cannot hold, such as an array."""
    found = {key: config[key] for key in config if key in SECTIONS}
    for key, section in found.items():
        plain(section, key)
    return found


def _after_function(
    config: Config, modify: Callable[[Config], Config | None], before: dict[str, object]
) -> Config:
    filename = config.filename
    helpers = {key: config[key] for key in config if key not in EFFECTIVE}
    changed: object = modify(config)
    changed = config if changed is None else changed
    if not isinstance(changed, (Config, Mapping)):
        raise UserError(f'cfg_modify_fn returned {changed!r}; it must return a config, or nothing.')
    config = changed if isinstance(changed, Config) else Config(dict(changed), filename=filename)
    for key in config:
        if key not in EFFECTIVE and (
            key not in helpers or config[key] is not helpers[key] and config[key] != helpers[key]
        ):
            raise UnknownNameError(
                'section that cfg_modify_fn sets',
                key,
                EFFECTIVE,
                'It would change nothing.',
                nearest_settings(str(key)),
            )
    old, new = before.get('model'), _sections(config).get('model')
    if isinstance(old, Mapping) and isinstance(new, Mapping) and isinstance(new.get('backbone'), Mapping):
        backbone = old.get('backbone')
        was = backbone if isinstance(backbone, Mapping) else {}
        lengths = [key for key in new['backbone'] if key in short_forms()]
        stale = [key for key in lengths if was.get(key) == new['backbone'][key]]
        if old.get('tuners') != new.get('tuners'):
            for key in stale:  # the function set model.tuners later than the short form
                del new['backbone'][key]
        elif len(stale) < len(lengths):
            _expand(config, 'change')
    return config


def _expand(config: Config, beside: str) -> None:
    model = config.get('model')
    if isinstance(model, dict) and isinstance(model.get('backbone'), dict):
        plain = Config(dict(model=model)).to_dict()['model']
        expand_short_forms(plain, beside)
        config.model = plain


def _set(config: Config, key: object, value: object) -> None:
    """Sets one option. A dict is merged with the dict in the config, as in a config file."""
    if not isinstance(key, str) or not all(key.split('.')):
        raise UserError(f'the option {key!r} is no path of a setting; give one such as train.max_epochs.')
    first, *below = key.split('.')
    if first not in EFFECTIVE:
        raise UnknownNameError(
            'section in the option', key, EFFECTIVE, 'The option would change nothing.', nearest_settings(key)
        )
    owner: object = config
    for name, _ in zip([first, *below], below):  # mmengine sets no key below None
        if isinstance(owner, dict | Config) and owner.get(name) is None:
            owner[name] = {}
        if isinstance(owner, dict | Config):
            owner = owner[name]
        elif isinstance(owner, list) and name.isdecimal() and int(name) < len(owner):
            owner = owner[int(name)]
    there = owner.get(key.rpartition('.')[2]) if isinstance(owner, dict | Config) else None
    if isinstance(value, Mapping) and (not value and there or isinstance(there, list)):
        raise UserError(
            f'the option {key}={shown(value)} would change nothing, or has no place: the config has '
            f'{shown(there)}. Give a value, or {"a list" if isinstance(there, list) else "a dict with keys"}.'
        )
    try:
        config.merge_from_dict({key: value})
    except (
        TypeError,
        KeyError,
        IndexError,
        ValueError,
        AssertionError,
        AttributeError,
        RecursionError,
    ) as error:
        raise UserError(f'the option {key}={shown(value)} does not fit the config: {error}') from error


def _take_along(config: Config, before: dict[str, object]) -> None:
    """Updates the settings that follow from the old number of epochs.

    - max_epochs, the sum of the stages' epochs
    - T_max
    - a warmup that is longer than the new number of epochs
    """
    old, new = before.get('train'), config.get('train')
    if not isinstance(old, dict) or not isinstance(new, dict):
        return
    schedules: list[dict[str, object]] = [
        dict(section['lr_scheduler']) if isinstance(section.get('lr_scheduler'), dict) else {}
        for section in (old, new)
    ]
    was, now = old.get('max_epochs'), new.get('max_epochs')
    staged = old.get('stages') != new.get('stages') and bool(new.get('stages'))
    if staged and was == now:
        new.pop('max_epochs', None)
    t_max = schedules[1].get('T_max')
    if t_max is not None and t_max == schedules[0].get('T_max') and (t_max == was != now or staged):
        new['lr_scheduler']['T_max'] = None
    warmup = schedules[1].get('warmup_epochs')
    if staged or not all(fits(value, float) for value in (was, now, warmup)):
        return
    was, now, warmup = float(was), float(now), float(warmup)  # type: ignore[arg-type]  # `fits` saw numbers
    if warmup == schedules[0].get('warmup_epochs') and 0 < now < warmup <= was:
        new['lr_scheduler']['warmup_epochs'] = warmup * now / was
        warnings.warn(
            f'train.lr_scheduler.warmup_epochs is {warmup:g}, more than the {now:g} epochs of this run. The '
            f'warmup is shortened to {warmup * now / was:g}, the same share of the run as before.',
            stacklevel=3,
        )
