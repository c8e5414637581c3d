"""JSON schemas of bodies for /openapi.json, for routes that read their bodies themselves."""

import copy
from typing import Any

from pydantic import BaseModel


def schema_of(kind: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a body. Every part stands in its place, without references."""
    schema = kind.model_json_schema()
    parts = schema.pop('$defs', {})
    return _filled(schema, parts)


def _filled(value: Any, parts: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_filled(each, parts) for each in value]
    if not isinstance(value, dict):
        return value
    if '$ref' in value:
        named = parts[value['$ref'].rpartition('/')[2]]
        others = {key: each for key, each in value.items() if key != '$ref'}
        return _filled({**copy.deepcopy(named), **others}, parts)
    return {key: _filled(each, parts) for key, each in value.items()}
