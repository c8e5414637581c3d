"""Which plugins a setting takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PluginOf:
    """In `Annotated`, at a setting that is dict(type=NAME, …): the registry that builds it, such as 'tuner'."""

    registry: str

    def __get_pydantic_json_schema__(
        self, core: Any, made_by: Callable[[Any], dict[str, Any]]
    ) -> dict[str, Any]:
        """Marks the place in a JSON Schema, where `schema.py` puts the plugins."""
        return made_by(core) | {'plugin': self.registry}
