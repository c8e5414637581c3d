"""The JSON Schema of a config, from which an editor completes and checks .yaml and .json files.

pydantic makes the part of the settings. The part of the plugins comes from the plugins' signatures.
"""

import json
from contextlib import suppress
from typing import Any

from pydantic import PydanticUserError, TypeAdapter

from vet.arguments import REQUIRED, Argument, arguments_of, text_of
from vet.config.sections import Settings
from vet.config.short_forms import short_forms
from vet.registry import REGISTRIES, Registry


def json_schema() -> dict[str, object]:
    """The schema. It requires no key, because a `_base_` file may give the key. It allows helper variables
    at the top.
    """
    schema = _completed(TypeAdapter(Settings).json_schema())
    schema['$defs'] |= {name: _plugins(registry) for name, registry in REGISTRIES.items()}
    schema['additionalProperties'] = True
    return {'$schema': 'https://json-schema.org/draft/2020-12/schema', **schema}


def _completed(node: object) -> Any:
    """pydantic's schema, with a reference at each setting that takes a plugin."""
    if isinstance(node, list):
        return [_completed(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    if isinstance(registry := node.get('plugin'), str):
        kept = {key: node[key] for key in ('description', 'default') if key in node}
        return {'$ref': f'#/$defs/{registry}', **kept}
    return {key: _completed(inner) for key, inner in node.items() if key not in ('required', 'title')}


def _plugins(registry: Registry) -> dict[str, object]:
    """The schema of a dict(type=NAME, …). The type selects the arguments that the plugin takes."""
    of_each = [
        {
            'if': {'properties': {'type': {'const': name}}, 'required': ['type']},
            'then': _plugin(registry, name),
        }
        for name in registry.names()
    ]
    return {'type': 'object', 'properties': {'type': {'enum': registry.names()}}, 'allOf': of_each}


def _plugin(registry: Registry, name: str) -> dict[str, object]:
    arguments = arguments_of(registry, name)
    named = [argument for argument in arguments if not argument.name.startswith('**')]
    lengths = dict.fromkeys(short_forms(), True) if registry.name == 'backbone' else {}
    return {
        'description': text_of(registry, name),
        'properties': {'type': True, **lengths, **{argument.name: _argument(argument) for argument in named}},
        'additionalProperties': len(named) < len(arguments),
    }


def _argument(argument: Argument) -> dict[str, object]:
    schema = _values(argument)
    if argument.meaning:
        schema['description'] = argument.meaning
    return schema


def _values(argument: Argument) -> dict[str, object]:
    try:
        schema = TypeAdapter(argument.hint).json_schema()
    except PydanticUserError:  # no JSON value fits the hint, such as a callable
        schema = {}
    if argument.given:  # null stands for an argument that is left out
        return {'anyOf': [schema, {'type': 'null'}], 'default': None}
    if argument.default is not REQUIRED:
        with suppress(TypeError):  # a default that is no JSON value
            schema['default'] = json.loads(json.dumps(argument.default))
    return schema
