"""The arguments of a plugin, from its signature, and its text. People and editors read both."""

import inspect
import re
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

from vet.allowed import options
from vet.registry import Registry, package_of

EQUATIONS = re.compile(  # LaTeX in torch's docstrings
    r'^([ \t]*)\.\. math::\n(?:\1[ \t]+.*\n|[ \t]*\n)*', re.MULTILINE
)
REQUIRED = object()  # stands for the default of an argument without a default


@dataclass(frozen=True)
class Argument:
    """An argument of a plugin. hint: its type, with its range. default: REQUIRED if it must be given.

    given: the value that vet gives if a config does not, in words, such as the number of classes. Else ''.
    """

    name: str
    hint: Any
    default: Any
    given: str

    @property
    def is_required(self) -> bool:
        return self.default is REQUIRED and not self.given

    @property
    def allowed(self) -> list[str]:
        """Each kind of value that the hint allows, in words."""
        return options(self.hint)

    @property
    def default_text(self) -> str:
        """The default, as a config writes the value."""
        return self.given or ('required' if self.default is REQUIRED else as_written(self.default))


def arguments_of(registry: Registry, name: str) -> list[Argument]:
    """The arguments of the plugin called `name`.

    UnknownNameError, with the nearest names, for an unknown name.
    """
    plugin = registry.find(name)
    hints = registry.hints(plugin)
    found = []
    for parameter in inspect.signature(plugin).parameters.values():
        key, default = parameter.name, parameter.default
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            found.append(Argument(f'**{key}', Any, {}, 'nothing'))
            continue
        default = REQUIRED if default is parameter.empty else default
        found.append(Argument(key, hints.get(key, Any), default, registry.given.get(key, '')))
    return found


def text_of(plugin: object) -> str:
    """The docstring of the plugin.

    The docstrings of vet's classes whose `__init__` the plugin inherits or extends follow. Without
    docstrings, the module's docstring.
    """
    of_module = inspect.getdoc(inspect.getmodule(plugin)) or ''
    if not inspect.isclass(plugin):
        return inspect.getdoc(plugin) or of_module
    makers = [base for base in plugin.__mro__ if '__init__' in vars(base)]
    ours = [base for base in makers if package_of(base) == 'vet']
    texts = [
        inspect.cleandoc(vars(kind).get('__doc__') or '')
        for kind in dict.fromkeys((plugin, *makers[:1], *ours))
    ]
    return EQUATIONS.sub('', '\n\n'.join(filter(None, texts))) or of_module


def as_written(value: object) -> str:
    """A value as a config file writes it."""
    if isinstance(value, dict) and all(key.isidentifier() and not iskeyword(key) for key in map(str, value)):
        return f'dict({", ".join(f"{key}={as_written(inner)}" for key, inner in value.items())})'
    if isinstance(value, list):
        return f'[{", ".join(map(as_written, value))}]'
    return repr(value)
