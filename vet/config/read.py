"""Reads a config, once: expands the short forms, fills in the defaults, and checks every key and value."""

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vet.allowed import choices, must_be
from vet.config.file import names_in_files
from vet.config.nearest import nearest_settings
from vet.config.older import train_of_today
from vet.config.plain import plain
from vet.config.sections import Settings, entry_section, fields_of
from vet.config.short_forms import expand_short_forms
from vet.config.together import check_together, follow
from vet.errors import UnknownNameError, UserError, shown

# pydantic's names of two errors
UNKNOWN = 'unexpected_keyword_argument'
MISSING = 'missing'
OWN_NAMES = ('work_dir', 'custom_imports', 'env_variables', 'default_scope')


def read_settings(config: Mapping[str, object]) -> Settings:
    """The settings of a config, complete and checked. UserError says which key or value is wrong."""
    sections = fields_of(Settings)
    _refuse_unused_names(config, sections)
    given = {name: plain(config[name], name) for name in config if name in sections}
    if isinstance(given.get('train'), dict):
        given['train'] = train_of_today(given['train'])
    if isinstance(given.get('model'), dict):
        expand_short_forms(
            given['model'], 'refuse both' if getattr(config, 'filename', None) else 'refuse contradictions'
        )
    try:
        settings = _reader().validate_json(json.dumps(given))
    except ValidationError as error:
        raise _explained(error, given) from error
    check_together(settings)
    follow(settings, given.get('train') or {})
    return settings


def _refuse_unused_names(config: Mapping[str, object], sections: Mapping[str, object]) -> None:
    """UnknownNameError for a name at the top that looks like a setting but has no effect."""
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


@cache
def _reader() -> TypeAdapter[Settings]:
    return TypeAdapter(Settings)


def _explained(error: ValidationError, given: dict[str, object]) -> UserError:
    """pydantic's error in vet's words: the setting, the given value, and the allowed values.

    An unknown key comes first, because a misspelled key may be the reason why another key is missing.
    """
    errors = error.errors(include_url=False)
    first = min(errors, key=lambda e: (e['type'] != UNKNOWN, e['type'] == MISSING))
    is_of_key = first['type'] in (UNKNOWN, MISSING)
    path, hint, value = _walk(first['loc'][:-1] if is_of_key else first['loc'], given)
    if first['type'] == UNKNOWN:
        key = str(first['loc'][-1])
        keys = fields_of(hint)
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5) or nearest_settings(key)
        return UnknownNameError(f'key in {path or "the config"}', key, keys, near=near)
    if first['type'] == MISSING:
        lacks = [e['loc'][-1] for e in errors if e['type'] == MISSING and e['loc'][:-1] == first['loc'][:-1]]
        return UserError(
            f'{path or "the config"} lacks {", ".join(map(str, lacks))}; its keys are {_names(hint)}.'
        )
    cause = first.get('ctx', {}).get('error')  # of a check that stands at the field
    if isinstance(cause, UserError):
        return UserError(f'{path} is {cause}')
    if isinstance(value, str) and (names := choices(hint)):
        return UnknownNameError(path, value, names)
    return UserError(f'{path} is {shown(value)}; it must be {_must_be(value, hint)}.')


def _must_be(value: object, hint: object) -> str:
    if dataclasses.is_dataclass(hint):
        return f'a dict with the keys {_names(hint)}'
    if section := entry_section(hint):
        return f'a list of dicts with the keys {_names(section)}'
    return must_be(value, hint)


def _walk(place: Sequence[str | int], given: Any) -> tuple[str, object, object]:
    """The setting at a place that pydantic names: its path, its hint, and the given value."""
    path = ''
    hint = Settings
    value = given
    for step in place:
        if isinstance(step, str) and step in fields_of(hint):
            path = f'{path}.{step}' if path else step
            hint = fields_of(hint)[step]
        elif isinstance(step, int) and entry_section(hint):
            path = f'{path}[{step}]'
            hint = entry_section(hint)
        else:
            break  # pydantic goes on within the value: the option of a union, the entry of a list
        value = value[step]
    return path, hint, value


def _names(section: object) -> str:
    return ', '.join(fields_of(section))
