"""What all commands share: how they report a user's mistake, and the options with one meaning everywhere."""

import argparse
import ast
import errno
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from mmengine.config import DictAction

from vet.errors import DataWarning, ToldError, UserError


def run(main: Callable[[], None]) -> None:
    """Calls `main`; a UserError becomes one message and exit code 2, a signal n exit code 128 + n: Ctrl-C 130, SIGTERM 143.

    A DataWarning is one line.
    """
    shown, former = warnings.showwarning, exit_at_signals()

    def show(message: Any, category: Any, *place: Any, **options: Any) -> None:
        if issubclass(category, DataWarning):
            print(f'note: {message}', file=sys.stderr)
        else:
            shown(message, category, *place, **options)

    warnings.showwarning = show
    try:
        main()
    except UserError as error:
        _fail(error)
    except MemoryError as error:
        _fail(f'the memory does not suffice ({error}). Take smaller images or batches, or end other programs.')
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail('no space is left on the disk for what this command prints or writes; free some space.')
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def exit_at_signals() -> dict[int, Any]:
    """From now, Ctrl-C raises KeyboardInterrupt, and SIGTERM and SIGHUP end the process as sys.exit does, with 128 + n.

    Returns the former handlers. A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """
    former = {}
    if threading.current_thread() is threading.main_thread():
        for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                former[number] = signal.signal(number, signal.default_int_handler if name == 'SIGINT' else _exit)
    return former


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _fail(message: object) -> NoReturn:
    """One message, and exit code 2. A message that another process of the run shows is not shown twice."""
    if not isinstance(message, ToldError):
        print(f'error: {message}', file=sys.stderr)
    sys.exit(2)


def add_import(parser: argparse.ArgumentParser) -> None:
    """--import, for commands that read a model folder: it names its plugins, but holds no code."""
    parser.add_argument('--import', dest='imports', action='append', default=[], metavar='MODULE',
                        help='a Python module or file with plugins of your own that the model uses')


def import_plugins(modules: list[str]) -> None:
    """Imports modules, each by its name or by the path of its file."""
    for module in modules:
        path = Path(module)
        sys.path.append(str(path.parent.resolve()))
        try:
            importlib.import_module(path.stem if path.suffix == '.py' else module)
        except Exception as error:      # whatever the user's own Python does
            raise UserError(f'--import {module} failed: {type(error).__name__}: {error}') from error


def add_common(parser: argparse.ArgumentParser) -> None:
    """--device and --data-root."""
    parser.add_argument('--device', help='cpu, cuda, cuda:1, … (default: the best there is)')
    parser.add_argument('--data-root', metavar='DIR', help='where the datasets are (default: $VET_DATA_ROOT, else ./data)')


class Options(DictAction):
    """KEY=VALUE …, where VALUE is what mmengine reads, or Python's dict(…), {…} and […] of constants, as in a config file."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        try:
            python = {key: literal(text) for key, _, text in (value.partition('=') for value in values) if text[:1] in tuple('[{d')
                      and literal(text) is not None}
            super().__call__(parser, namespace, [value for value in values if value.partition('=')[0] not in python], option_string)
            getattr(namespace, self.dest).update(python)
        except (ValueError, AssertionError, RecursionError) as error:
            parser.error(f'{option_string} takes KEY=VALUE …; given: {" ".join(values)} ({error})')


def literal(text: str) -> Any:
    """A Python value of constants, lists, dicts and dict(…) calls; None for any other text. Nothing is executed."""
    try:
        return _value(ast.parse(text, mode='eval').body)
    except (SyntaxError, ValueError):
        return None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        return {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {ast.literal_eval(key): _value(value) for key, value in zip(node.keys, node.values) if key is not None}
    return ast.literal_eval(node)


def add_options(parser: argparse.ArgumentParser) -> None:
    """--cfg-options key=value …"""
    parser.add_argument('--cfg-options', nargs='+', action=Options, metavar='KEY=VALUE',
                        help='changes to the config: train.max_epochs=5 model.backbone.lora_length=4')
