"""Decorators that put a user's own plugins into the registries: `@vet.register_tuner`.

vet offers them under its own name. vet's own plugins use the registries, see vet/registry.py.
"""

from collections.abc import Callable
from typing import Any, TypeVar, overload

from vet.errors import UserError
from vet.registry import (
    BACKBONES,
    DATASETS,
    HEADS,
    HOOKS,
    LOSSES,
    METRICS,
    OBJECTIVES,
    OPTIMIZERS,
    SAMPLERS,
    TRANSFORMS,
    TUNERS,
    Registry,
)

Plugin = TypeVar('Plugin', bound=Callable[..., Any])


class Register:
    """A decorator of a class or a function, with or without a name: `@register_tuner`,
    `@register_tuner(name='Mine')`.

    Without a name, the name is that of the class or function. UserError for a name that another plugin has. A
    notebook's cell that runs again replaces its plugin.
    """

    def __init__(self, registry: Registry):
        self._registry = registry

    @overload
    def __call__(self, plugin: Plugin, /) -> Plugin: ...
    @overload
    def __call__(self, *, name: str | None = None) -> Callable[[Plugin], Plugin]: ...
    def __call__(self, *plugins: object, name: str | None = None) -> Any:
        if not plugins:
            return lambda plugin: self._put(plugin, name)
        (plugin,) = plugins
        return self._put(plugin, name)

    def _put(self, plugin: Any, name: str | None) -> Any:
        if not callable(plugin):
            raise UserError(
                f'{plugin!r} is no {self._registry.name}; decorate a class or a function, or give name=….'
            )
        name = name or plugin.__name__
        other = self._registry.find(name) if name in self._registry.names() else None
        if other is not None and _place(other) != _place(plugin):
            raise UserError(
                f'the {self._registry.name} {name!r} is registered already, by {other.__module__}; give '
                'another name=….'
            )
        self._registry.register_module(name=name, module=plugin, force=True)
        return plugin


def _place(plugin: Any) -> tuple[str, str]:
    return plugin.__module__, plugin.__qualname__


register_backbone = Register(BACKBONES)
register_dataset = Register(DATASETS)
register_head = Register(HEADS)
register_hook = Register(HOOKS)
register_objective = Register(OBJECTIVES)
register_loss = Register(LOSSES)
register_metric = Register(METRICS)
register_optimizer = Register(OPTIMIZERS)
register_sampler = Register(SAMPLERS)
register_transform = Register(TRANSFORMS)
register_tuner = Register(TUNERS)
