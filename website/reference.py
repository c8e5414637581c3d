"""The pages Python and Commands, from the public names' docstrings and the commands' --help."""

import contextlib
import importlib
import inspect
import io
import re
import sys
from unittest import mock

import vet
from vet.cli.vet import commands

# the modules of a name, in the order of the page; the registries and tuners have pages of their own
PARTS = {
    'Train and use a model': ('build_trainer', 'pipeline'),
    'A network of your own': ('tune', 'load'),
    'Folders and hubs': (
        'vet.hub.from_pretrained',
        'vet.hub.push_to_hub',
        'vet.hub.load_peft',
        'vet.hub.save_peft',
        'vet.hub.load_modelscope',
        'vet.hub.combine.combine',
    ),
    'Plugins of your own': ('Tuner', *sorted(name for name in vet.__all__ if name.startswith('register_'))),
    'Errors': ('UserError',),
}
ITEM = re.compile(r'^(?:    )?((?:\*{0,2}[a-z]\w*(?:, )?)+(?: \([^)]*\))?): (.*)$')
TITLE = re.compile(r'^[A-Z][\w /,-]{2,40}: ')  # of a paragraph, such as "Parameters per site: …"


def pages() -> dict[str, str]:
    """{page: its Markdown}"""
    return {'api.md': python(), 'cli.md': cli()}


def python() -> str:
    """The public functions and classes: signature and docstring."""
    lines = [
        '# Python',
        'These are the public names of vet. The [methods](methods/index.md) have pages of their own.',
    ]
    for title, names in PARTS.items():
        lines.append(f'## {title}')
        for name in names:
            lines += entry(name)
    return '\n\n'.join(lines)


def entry(name: str) -> list[str]:
    """A public name: heading, signature and text. For a class, also its public methods."""
    path = name if '.' in name else f'vet.{name}'
    module, _, last = path.rpartition('.')
    thing = getattr(importlib.import_module(module), last)
    lines = [f'### `{path}`', f'```python\n{path}{signature(thing)}\n```', prose(inspect.getdoc(thing) or '')]
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        for key, method in vars(thing).items():
            if not key.startswith('_') and inspect.isfunction(method):
                shown = f'```python\n{last}.{key}{signature(method)}\n```'
                lines += [f'#### `{last}.{key}`', shown, prose(inspect.getdoc(method) or '')]
    return lines


def signature(thing: object) -> str:
    """The arguments, one in a line if they are long."""
    text = str(inspect.signature(thing))
    if len(text) < 70:
        return text
    parameters = [f'    {one},' for one in inspect.signature(thing).parameters.values()]
    return '\n'.join(['(', *parameters, ')'])


def prose(text: str) -> str:
    """A docstring as Markdown. Lines `name: meaning`, which may go on in indented lines, become a list."""
    lines: list[str] = []
    is_item = False
    for line in text.splitlines():
        found = ITEM.match(line)
        if found:
            lines += ([] if is_item else ['']) + [f'- **{found[1]}**: {escaped(found[2])}']
            is_item = True
        elif is_item and line.startswith('    '):
            lines.append('    ' + escaped(line.strip()))
        else:
            lines += ([''] if is_item or TITLE.match(line) else []) + [escaped(line.strip())]
            is_item = False
    return '\n'.join(lines)


def escaped(text: str) -> str:
    """Text whose stars, underscores and angles are no Markdown. Code stays."""
    parts = text.split('`')
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r'([*_<\\\[\]|])', r'\\\1', parts[i])
    return '`'.join(parts)


def cli() -> str:
    """The --help of each command."""
    lines = ['# Commands', '`vet --help` lists the commands, and `vet COMMAND --help` shows these texts.']
    for name in commands():
        lines += [f'## vet {name}', f'```text\n{help_of(name)}\n```']
    return '\n\n'.join(lines)


def help_of(name: str) -> str:
    """What `vet NAME --help` prints, 90 columns wide."""
    said = io.StringIO()
    with (
        mock.patch.object(sys, 'argv', [f'vet {name}', '--help']),
        mock.patch.dict('os.environ', COLUMNS='90'),
        contextlib.redirect_stdout(said),
        contextlib.suppress(SystemExit),
    ):
        importlib.import_module(f'vet.cli.{name}').main()
    return said.getvalue().strip()
