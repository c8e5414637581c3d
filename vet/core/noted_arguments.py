"""Checks and notes the arguments that a tuner was made with, so that a model folder can name the tuner again.

Only core/tuner.py imports this file.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

from vet.core.peft_names import PEFT_NAMES, in_names_of_vet
from vet.registry import hints_of, package_of, require_arguments

NOTED = '_given'  # in the tuner's __dict__


def noted(init: Callable[..., None]) -> Callable[..., None]:
    """An `__init__` that checks its arguments, and notes them by name. It also takes PEFT's names.

    The __init__ of the object's own class does so. UnknownNameError for an argument that does not exist,
    UserError for a value that does not fit the argument's hint.
    """
    tuner = init.__qualname__.split('.')[-2] if '.' in init.__qualname__ else ''
    theirs = PEFT_NAMES.get(tuner, {}) if package_of(init) == 'vet' else {}
    signature = _with_names(inspect.signature(init), theirs) if theirs else inspect.signature(init)
    _, *accepted = signature.parameters

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        is_first = NOTED not in self.__dict__  # the __init__ of a base class notes nothing
        if is_first:
            object.__setattr__(self, NOTED, {})
            parameters = {name: signature.parameters[name] for name in accepted}
            given = kwargs | _bound(signature, self, args, kwargs)
            kind = type(self).__name__
            require_arguments(
                given, parameters, hints_of(wrapper), f'tuner {kind!r}', f'argument of {kind}', self.elsewhere
            )
        if theirs.keys() & kwargs.keys():
            args, kwargs = (), in_names_of_vet(tuner, _bound(signature, self, args, kwargs))
        if is_first:
            object.__setattr__(self, NOTED, deepcopy(_bound(signature, self, args, kwargs)))
        init(self, *args, **kwargs)

    hints = {name: init.__annotations__[ours] | None for name, ours in theirs.items()}
    of_vet = {name: hint for name, hint in init.__annotations__.items() if not theirs or name != 'peft'}
    wrapper.__annotations__ = of_vet | hints
    lines = (f"{name}: PEFT's name of `{ours}`." for name, ours in theirs.items())
    wrapper.__doc__ = '\n'.join(filter(None, [init.__doc__, *lines]))
    setattr(wrapper, '__signature__', signature)  # noqa: B010, mypy refuses an assignment
    return wrapper


def _with_names(signature: inspect.Signature, theirs: Iterable[str]) -> inspect.Signature:
    """The signature with PEFT's names, which are given by name, in the place of its `**peft`."""
    *ours, _ = signature.parameters.values()
    further = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in theirs]
    return signature.replace(parameters=[*ours, *further])


def _bound(signature: inspect.Signature, self: object, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
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
