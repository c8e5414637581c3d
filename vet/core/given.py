"""Notes the arguments that a tuner was made with, so that a model folder can name the tuner again.

Only core/tuner.py imports this file.
"""

import functools
import inspect
from collections.abc import Callable
from copy import deepcopy
from typing import Any

NOTED = '_given'  # in the tuner's __dict__


def noted(init: Callable[..., None]) -> Callable[..., None]:
    """An `__init__` that notes its arguments by name. The __init__ of the object's own class notes them."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        if NOTED not in self.__dict__:
            object.__setattr__(self, NOTED, {})  # the __init__ of a base class notes nothing
            bound = _bound(signature, self, args, kwargs)
            object.__setattr__(self, NOTED, deepcopy(bound))
        init(self, *args, **kwargs)

    return wrapper


def _bound(signature: inspect.Signature, self: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name. {} for arguments that do not fit: then `init` raises the error."""
    try:
        bound = signature.bind(self, *args, **kwargs)
    except TypeError:
        return {}
    _, *given = bound.arguments.items()
    named: dict[str, Any] = {}
    for name, value in given:
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        else:
            named[name] = value
    return named
