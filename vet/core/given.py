"""Checks and notes the arguments that a tuner was made with, so that a model folder can name the tuner again.

Only core/tuner.py imports this file.
"""

import functools
import inspect
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from vet.core.peft_names import PEFT_NAMES, in_own_names
from vet.errors import UnknownNameError
from vet.registry import hints_of, require_values

NOTED = '_given'  # in the tuner's __dict__


def noted(init: Callable[..., None]) -> Callable[..., None]:
    """An `__init__` that checks its arguments, and notes them by name.

    The __init__ of the object's own class does so. UnknownNameError for an argument that does not exist,
    UserError for a value that does not fit the argument's hint.
    """
    signature = inspect.signature(init)
    tuner = init.__qualname__.split('.')[-2] if '.' in init.__qualname__ else ''
    theirs = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in PEFT_NAMES.get(tuner, {})
    ]

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        if theirs and any(parameter.name in kwargs for parameter in theirs):
            positional = dict(zip(list(signature.parameters)[1:], args))
            args, kwargs = (), in_own_names(tuner, positional | kwargs)
        if NOTED not in self.__dict__:
            object.__setattr__(self, NOTED, {})  # the __init__ of a base class notes nothing
            _require_names(signature, self, kwargs)
            bound = _bound(signature, self, args, kwargs)
            require_values(bound, hints_of(init), f'tuner {type(self).__name__!r}')
            object.__setattr__(self, NOTED, deepcopy(bound))
        init(self, *args, **kwargs)

    if theirs:
        both = signature.replace(parameters=[*signature.parameters.values(), *theirs])
        setattr(wrapper, '__signature__', both)  # noqa: B010, mypy refuses an assignment
    return wrapper


def _require_names(signature: inspect.Signature, self: Any, kwargs: dict[str, Any]) -> None:
    _, *accepted = signature.parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted):
        return
    names = [parameter.name for parameter in accepted]
    for key in kwargs:
        if key not in names:
            advice = self.elsewhere.get(key, '')
            raise UnknownNameError(f'argument of {type(self).__name__}', key, names, advice)


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
