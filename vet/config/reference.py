"""A list of all settings for people: path, allowed values, default and meaning, from the fields of the
sections.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from vet.allowed import options
from vet.arguments import as_written
from vet.config.read import read_settings
from vet.config.sections import Settings, entry_section, fields_of
from vet.config.short_forms import expand_short_forms
from vet.mmengine_parts import Config

REQUIRED = 'required'
HEAD = """# Settings

This page lists every setting of a config. `vet config --markdown` writes this page from the fields in
`vet/config/sections.py`; do not edit the page.

- `vet config` shows the settings on a terminal.
- `vet config FILE` also shows the values that a file sets.
- `vet list tuners LoRA` shows the arguments of a plugin.

In a config file, a path is a chain of nested dicts: `train = dict(dataloader=dict(batch_size_per_gpu=32))`.
On the command line, a path is a name with dots: `--cfg-options train.dataloader.batch_size_per_gpu=32`.

Editors check and complete a .yaml or .json config by a JSON Schema. `vet config --json-schema > vet.json`
writes the schema. In a .yaml file, the first line `# yaml-language-server: $schema=vet.json` names the
schema.
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting. allowed: each kind of value that the setting takes."""

    path: str
    allowed: list[str]
    default: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A section: its path, its meaning, and its settings that are not sections themselves."""

    path: str
    meaning: str
    rows: list[Row]


def sections() -> list[Section]:
    """Every section. An outer section comes before its inner sections."""
    return [
        Section(path, section.__doc__ or '', list(_rows(section, path)))
        for path, section in _sections(Settings, '')
    ]


def _sections(section: object, path: str) -> Iterator[tuple[str, object]]:
    yield path, section
    for name, hint in fields_of(section).items():
        place = f'{path}.{name}' if path else name
        if fields_of(hint):
            yield from _sections(hint, place)
        elif entry := entry_section(hint):
            yield from _sections(entry, f'{place}[i]')


def _rows(section: Any, path: str) -> Iterator[Row]:
    hints = fields_of(section)
    meanings = _meanings(section)
    for field in dataclasses.fields(section):
        hint = hints[field.name]
        if fields_of(hint):
            continue  # a section: its settings have rows of their own
        entry = entry_section(hint)
        allowed = [f'a list of dicts with the keys {", ".join(fields_of(entry))}'] if entry else options(hint)
        place = f'{path}.{field.name}' if path else field.name
        yield Row(place, allowed, _default(field), meanings[field.name])


def _default(field: Any) -> str:
    if field.default is not MISSING:
        return as_written(field.default)
    return REQUIRED if field.default_factory is MISSING else as_written(field.default_factory())


@cache
def _meanings(section: Any) -> Mapping[str, str]:
    """{name of a field: the text below the field}."""
    schema = TypeAdapter(section).json_schema()
    return {
        name: ' '.join(field.get('description', '').split()) for name, field in schema['properties'].items()
    }


def values_set(config: Config) -> dict[str, object]:
    """{path: value} of the settings that a config and its `_base_` files set, with short forms expanded.

    The config may lack a model or a dataset, as a recipe does. UserError for a config that is wrong.
    """
    config = copy.deepcopy(config)
    if 'dataset' not in config:
        config.dataset = {}
    if 'model' not in config:
        config.model = {}
    has_backbone = not isinstance(config.model, dict) or 'backbone' in config.model
    if not has_backbone:
        config.model.backbone = {}
    read_settings(config)
    if not has_backbone:
        del config.model['backbone']
    given = config.to_dict()
    expand_short_forms(given['model'])
    paths = [row.path for section in sections() for row in section.rows]
    found = {path: _value_at(given, path) for path in paths}
    return {path: value for path, value in found.items() if value is not MISSING}


def _value_at(given: object, path: str) -> object:
    for name in path.split('.'):
        if not isinstance(given, Mapping) or name not in given:
            return MISSING
        given = given[name]
    return given


def markdown() -> str:
    """docs/config.md"""
    return HEAD + ''.join(map(_table, sections()))


def _table(section: Section) -> str:
    title = f'`{section.path}`' if section.path else 'The whole'
    lines = [f'\n## {title}\n', f'{" ".join(section.meaning.split())}\n']
    if section.rows:
        lines += ['| setting | default | allowed | meaning |', '|---|---|---|---|']
        lines += [
            f'| `{row.path}` | {_code(row.default)} | {_cell(", or ".join(row.allowed))} '
            f'| {_cell(row.meaning)} |'
            for row in section.rows
        ]
    return '\n'.join(lines) + '\n'


def _code(default: str) -> str:
    return default if default == REQUIRED else f'`{default}`'


def _cell(text: str) -> str:
    return text.replace('|', '\\|').replace('*', '\\*')
