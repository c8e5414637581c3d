"""The console script `vet`: vet train, test, predict, export, combine, push, benchmark, recipes, list."""

import argparse
import importlib
import pkgutil
import sys

import vet.cli

NO_COMMAND = ('command', 'vet')


def main() -> None:
    commands = [module.name for module in pkgutil.iter_modules(vet.cli.__path__) if module.name not in NO_COMMAND]
    parser = argparse.ArgumentParser(prog='vet', description='Vision efficient tuning. `vet COMMAND --help` says more.')
    parser.add_argument('command', choices=commands)
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='of the command')
    args = parser.parse_args()
    sys.argv = [f'vet {args.command}', *args.arguments]
    importlib.import_module(f'vet.cli.{args.command}').main()
