"""The command `vet`. `vet --help` lists its commands.

This module imports nothing slow. A signal must find its handler before torch is imported, which takes
seconds.
"""

import argparse
import ast
import importlib
import pkgutil
import sys
from pathlib import Path

import vet
import vet.cli
from vet.cli.signals import restore, stop_at_once
from vet.errors import UnknownNameError

NO_COMMAND = ('answers', 'command', 'save_masks', 'signals', 'sort_images', 'vet')


def program() -> None:
    """The process `vet`. A signal ends the process at once until the command begins, and after its end."""
    stop_at_once()
    main()


def main() -> None:
    """Runs the command in sys.argv, also within another program. Afterwards, signals have their former
    handlers.
    """
    former = stop_at_once()
    try:
        _main()
    finally:
        restore(former)


def _main() -> None:
    arguments = sys.argv[1:]
    parser = argparse.ArgumentParser(
        prog='vet',
        usage='vet COMMAND …',
        description='Vision efficient tuning. `vet COMMAND --help` says more about a command.',
        epilog=f'commands:\n{_described()}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument('-h', '--help', action='help', help='shows this text')
    parser.add_argument(
        '--version', action='version', version=f'vet {vet.__version__}', help='shows the version'
    )
    if not arguments:
        parser.print_help(sys.stderr)
        sys.exit(2)
    name, *rest = arguments
    if name.startswith('-'):
        parser.parse_args([name])
        parser.error(f'give a command before {name}')
    if name not in commands():
        print(f'error: {UnknownNameError("command", name, commands())}', file=sys.stderr)
        sys.exit(2)
    sys.argv = [f'vet {name}', *rest]
    _run(name)


def command(name: str) -> None:
    """The process of the command `name`, with the arguments in sys.argv. tools/train.py and the other tools
    call this.
    """
    stop_at_once()
    _run(name)


def _run(name: str) -> None:
    importlib.import_module(f'vet.cli.{name}').main()


def commands() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(vet.cli.__path__) if module.name not in NO_COMMAND]


def _described() -> str:
    """A line for each command: its name, and the first sentence of its file."""
    lines = []
    width = max(map(len, commands()))
    for name in commands():
        path = Path(vet.cli.__path__[0], f'{name}.py')
        text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
        first = text.partition('. ')[0].partition('\n\n')[0]
        lines.append(f'  {name:{width}}  {" ".join(first.split()).rstrip(".")}')
    return '\n'.join(lines)
