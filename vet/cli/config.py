"""Shows every setting: its meaning, allowed values and default. For a config file, also its values."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.padding import Padding

from vet.arguments import as_written
from vet.changes import modified
from vet.cli.command import Parser, add_import, add_options, import_plugins, run
from vet.config import load_config
from vet.config.reference import REQUIRED, markdown, sections, values_set
from vet.config.schema import json_schema
from vet.errors import UserError
from vet.shipped import copy_shipped
from vet.terminal import Terminal

EPILOG = (
    '`vet config copy NAME FOLDER` copies a config, suite, example or recipe that vet ships. '
    '`vet list configs` shows names.'
)


def main() -> None:
    if sys.argv[1:2] == ['copy']:
        _copy(sys.argv[2:])
        return
    parser = Parser(description=__doc__, epilog=EPILOG)
    parser.add_argument('config', nargs='?', help='a config file or a part of a config, such as a recipe')
    parser.add_argument('--json-schema', action='store_true', help='prints the JSON Schema, for editors')
    parser.add_argument('--markdown', action='store_true', help='prints the page docs/config.md')
    add_import(parser)
    add_options(parser)
    args = parser.parse_args()
    run(lambda: _show(args))


def _copy(arguments: list[str]) -> None:
    parser = Parser(prog='vet config copy', description='Copies a config that vet ships, to be changed.')
    parser.add_argument('name', help='of a config, suite, example or recipe; see `vet list configs`')
    parser.add_argument('folder', nargs='?', type=Path, default=Path(), help='default: this folder')
    args = parser.parse_args(arguments)
    run(lambda: print(*copy_shipped(args.name, args.folder), sep='\n'))


def _show(args: argparse.Namespace) -> None:
    import_plugins(args.imports)
    if args.config is None and args.cfg_options:
        raise UserError('--cfg-options change a config; give the config file too.')
    if args.json_schema:
        print(json.dumps(json_schema(), indent=1))
    elif args.markdown:
        print(markdown(), end='')
    elif args.config is None:
        _show_settings({})
    else:
        _show_settings(values_set(modified(load_config(args.config), None, args.cfg_options)))


def _show_settings(values: Mapping[str, object]) -> None:
    """Each setting with the value that is set, else its default."""
    terminal = Terminal(markup=False, emoji=False, highlight=False)
    for section in sections():
        terminal.print(' '.join(f'{section.path}  {section.meaning}'.split()))
        for row in section.rows:
            value = f'= {row.default}'
            if row.default == REQUIRED:
                value = f'({REQUIRED})'
            if row.path in values:
                value = f'= {as_written(values[row.path])}    (set; default: {row.default})'
            terminal.print(f'\n  {row.path} {value}')
            terminal.print(Padding(row.meaning, (0, 0, 0, 6)))
            terminal.print(Padding(f'Allowed: {", or ".join(row.allowed)}.', (0, 0, 0, 6)))
        terminal.print()
