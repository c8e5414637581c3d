"""The command `vet`: vet train, test, predict, export, combine, push, benchmark, recipes, list, config.

This module imports nothing slow. A signal must find its handler before torch is imported, which takes
seconds.
"""

import argparse
import importlib
import os
import pkgutil
import signal
import sys
from types import FrameType

import vet.cli

NO_COMMAND = ('command', 'vet')


def main() -> None:
    commands = [
        module.name for module in pkgutil.iter_modules(vet.cli.__path__) if module.name not in NO_COMMAND
    ]
    parser = argparse.ArgumentParser(
        prog='vet', description='Vision efficient tuning. `vet COMMAND --help` says more.'
    )
    parser.add_argument('command', choices=commands)
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='of the command')
    args = parser.parse_args()
    sys.argv = [f'vet {args.command}', *args.arguments]
    command(args.command)


def command(name: str) -> None:
    """Runs the command `name` with the arguments in sys.argv. tools/train.py and the other tools call
    this.
    """
    for signal_name in ('SIGINT', 'SIGTERM', 'SIGHUP'):
        number = getattr(signal, signal_name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _stop_at_once)  # until the command begins, and after the command has ended
    importlib.import_module(f'vet.cli.{name}').main()


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    """Ends the process.

    During imports there is nothing to save, and imported code could catch an exception.
    """
    os.write(2, b'stopped\n')
    os._exit(128 + number)
