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

from vet.errors import DataWarning, ToldError, UserError
from vet.terminal import escaped


def run(main: Callable[[], None]) -> None:
    """Calls `main`; a UserError becomes one message and exit code 2, a signal n exit code 128 + n: Ctrl-C
    130, SIGTERM 143.

    A DataWarning is one line.
    """
    shown, former = warnings.showwarning, exit_at_signals()

    def show(message: Any, category: Any, *place: Any, **options: Any) -> None:
        if issubclass(category, DataWarning):
            print(f'note: {escaped(str(message))}', file=sys.stderr)
        else:
            shown(message, category, *place, **options)

    warnings.showwarning = show
    try:
        main()
    except UserError as error:
        _fail(error)
    except MemoryError as error:
        _fail(
            f'the memory does not suffice ({error}). Take smaller images or batches, or end other programs.'
        )
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
    """From now, Ctrl-C raises KeyboardInterrupt, and SIGTERM and SIGHUP end the process as sys.exit does,
    with 128 + n.

    Returns the former handlers. A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """
    former = {}
    if threading.current_thread() is threading.main_thread():
        for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                former[number] = signal.signal(
                    number, signal.default_int_handler if name == 'SIGINT' else _exit
                )
    return former


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _fail(message: object) -> NoReturn:
    """One message, and exit code 2. A message that another process of the run shows is not shown twice."""
    if not isinstance(message, ToldError):
        print(f'error: {escaped(str(message))}', file=sys.stderr)
    sys.exit(2)


def add_import(parser: argparse.ArgumentParser) -> None:
    """--import, for commands that read a model folder: it names its plugins, but holds no code."""
    parser.add_argument(
        '--import',
        dest='imports',
        action='append',
        default=[],
        metavar='MODULE',
        help='a Python module or file with plugins of your own that the model uses',
    )


def import_plugins(modules: list[str]) -> None:
    """Imports modules, each by its name or by the path of its file."""
    for module in modules:
        path = Path(module)
        sys.path.append(str(path.parent.resolve()))
        try:
            importlib.import_module(path.stem if path.suffix == '.py' else module)
        except Exception as error:  # whatever the user's own Python does
            raise UserError(f'--import {module} failed: {type(error).__name__}: {error}') from error


def add_common(parser: argparse.ArgumentParser) -> None:
    """--device and --data-root."""
    parser.add_argument('--device', help='cpu, cuda, cuda:1, … (default: the best there is)')
    parser.add_argument(
        '--data-root', metavar='DIR', help='where the datasets are (default: $VET_DATA_ROOT, else ./data)'
    )


class Options(argparse.Action):
    """KEY=VALUE …. A value is Python's number, True, False, None, quoted text, [list], dict(…) or {dict} of
    these, as in a config
    file. Any other value is a text, and stays as it is: a path with spaces or commas needs no quotes of its
    own."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        options = dict(getattr(namespace, self.dest, None) or {})
        for given in values:
            key, equals, text = given.partition('=')
            if not equals or not key:
                parser.error(f'{option_string} takes KEY=VALUE …; given: {escaped(given)}')
            try:
                value = literal(text)
            except ValueError as error:
                parser.error(f'{option_string} takes KEY=VALUE …; given: {escaped(given)} ({error})')
            options.pop(key, None)  # what is given last is applied last
            options[key] = value
        setattr(namespace, self.dest, options)


WORDS = {'true': True, 'false': False, 'none': None, 'null': None}
OPEN = {'[': ']', '(': ')', '{': '}'}


def literal(text: str) -> Any:
    """The value that a text writes in Python; of a list, words may stand without quotes. Any other text is
    itself.

    Nothing is executed. ValueError for a list or dict that has no end.
    """
    stripped = text.strip()
    if stripped.lower() in WORDS:
        return WORDS[stripped.lower()]
    try:
        value = _value(ast.parse(stripped, mode='eval').body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _words(stripped) if stripped[:1] in ('[', '(') else _no_dict(text)
    return (
        value if isinstance(value, str | int | float | list | dict) else text
    )  # no bytes, sets or complex numbers


def _words(text: str) -> list[Any]:
    """[a, b] or (a, b) of words without quotes."""
    if not text.endswith(OPEN[text[0]]):
        raise ValueError(f'the list has no {OPEN[text[0]]}')
    parts, depth, start, quote = [], 0, 1, ''
    for place, char in enumerate(text):
        if char in '"\'' and (quote == char or not quote and not text[start:place].strip()):
            quote = '' if quote else char
        if quote:
            continue  # what is quoted holds no comma and no bracket of the list
        depth += (char in OPEN) - (char in OPEN.values())
        if depth == 1 and char == ',' or depth == 0:
            if part := text[start:place].strip():
                parts.append(literal(part))
            start = place + 1
        if depth == 0 and place < len(text) - 1 or depth > 40:
            raise ValueError('the brackets do not fit')
    return parts


def _no_dict(text: str) -> str:
    if text.strip()[:1] == '{' or text.strip().startswith('dict('):
        raise ValueError('this is no dict of numbers, quoted texts, lists and dicts')
    return text


def _value(node: ast.expr) -> Any:
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == 'dict'
        and not node.args
    ):
        return {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Constant) and node.value is Ellipsis:
        raise ValueError('… is no value')
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {
            ast.literal_eval(key): _value(value)
            for key, value in zip(node.keys, node.values)
            if key is not None
        }
    return ast.literal_eval(node)


def add_options(parser: argparse.ArgumentParser) -> None:
    """--cfg-options key=value …"""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Options,
        metavar='KEY=VALUE',
        help='changes to the config: train.max_epochs=5 model.backbone.lora_length=4',
    )
