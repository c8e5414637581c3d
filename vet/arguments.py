"""The arguments of a plugin, from its signature, and its text. People and editors read both."""

import inspect
import re
import textwrap
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

from vet.allowed import options
from vet.registry import Registry, parameters_of

EQUATIONS = re.compile(  # LaTeX in torch's docstrings
    r'^([ \t]*)\.\. math::\n(?:\1[ \t]+.*\n|[ \t]*\n)*', re.MULTILINE
)
# `rank, alpha: …` or `lr (float, optional): …`, and the lines below with a larger indent
MEANING = re.compile(r'^( *)(\w+(?:(?:, | and )\w+)*)(?: \(.*?\))? ?: +(\S.*(?:\n\1 +\S.*)*)', re.MULTILINE)
REQUIRED = object()  # stands for the default of an argument without a default


@dataclass(frozen=True)
class Argument:
    """An argument of a plugin. hint: its type, with its range. default: REQUIRED if it must be given.

    given: the value that vet gives if a config does not, in words, such as the number of classes. Else ''.
    meaning: from the docstrings of the plugin and of its base classes. If these do not explain the argument:
        `given`.
    """

    name: str
    hint: Any
    default: Any
    given: str
    meaning: str

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
    meanings = _meanings(registry, name)
    arguments = []
    for key, parameter in parameters_of(plugin).items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.append(Argument(f'**{key}', Any, {}, 'nothing', 'further arguments'))
            continue
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        given = registry.given.get(key, '')
        meaning = ' '.join(meanings[key]) or given
        arguments.append(Argument(key, hints.get(key, Any), default, given, meaning))
    return arguments


def text_of(registry: Registry, name: str) -> str:
    """The docstring of the plugin called `name`. Without a docstring, the docstring of its module.

    The meanings of arguments that other docstrings explain follow.
    """
    plugin = registry.find(name)
    docstring, *_ = _docstrings(plugin)
    text = EQUATIONS.sub('', docstring or inspect.getdoc(inspect.getmodule(plugin)) or '').rstrip()
    said = _entries(text)
    further = []
    for key, texts in _meanings(registry, name).items():
        if elsewhere := ' '.join(meaning for meaning in texts if meaning != said.get(key)):
            line = f'{key}: {elsewhere}'
            further.append(textwrap.fill(line, 106, subsequent_indent='    ', break_on_hyphens=False))
    return '\n\n'.join(filter(None, (text, '\n'.join(further))))


def _docstrings(plugin: object) -> list[str]:
    """The docstrings of the plugin and its `__init__`, then those of its base classes."""
    if not inspect.isclass(plugin):
        return [inspect.getdoc(plugin) or '']
    owners = [owner for kind in plugin.__mro__[:-1] for owner in (kind, vars(kind).get('__init__'))]
    return [inspect.cleandoc(owner.__doc__ or '') for owner in owners if owner]


def _meanings(registry: Registry, name: str) -> dict[str, list[str]]:
    """{argument: its meaning in each docstring that explains the argument}, the nearest docstring first."""
    plugin = registry.find(name)
    explained = [_entries(docstring) for docstring in _docstrings(plugin)]
    meanings = {}
    for key in parameters_of(plugin):
        texts = list(dict.fromkeys(entries[key] for entries in explained if key in entries))
        further = [registry.meanings[key]] if key in registry.meanings else []
        meanings[key] = texts or further
    return meanings


def _entries(docstring: str) -> dict[str, str]:
    """{name: text} of the lines `name: text` in a docstring."""
    return {
        name: ' '.join(match[3].split())
        for match in MEANING.finditer(docstring)
        for name in re.split(', | and ', match[2])
    }


def as_written(value: object) -> str:
    """A value as a config file writes it."""
    if isinstance(value, dict) and all(key.isidentifier() and not iskeyword(key) for key in map(str, value)):
        return f'dict({", ".join(f"{key}={as_written(inner)}" for key, inner in value.items())})'
    if isinstance(value, list):
        return f'[{", ".join(map(as_written, value))}]'
    return repr(value)
