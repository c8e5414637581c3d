"""The parts that all commands share: the report of a user's mistake, and options that many commands have."""

import argparse
import ast
import difflib
import errno
import importlib
import itertools
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from vet.cli.signals import by_signal, exit_at_signals, imports, restore
from vet.errors import DataWarning, ToldError, UserError
from vet.escapes import escaped

# the answers of a system that takes no such path, or gives no access
OF_PATHS = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EROFS)


def run(main: Callable[[], None], ends_by_signal: bool = False) -> None:
    """Calls `main`. A UserError becomes one message and exit code 2. A DataWarning becomes one line.

    A signal n becomes exit code 128 + n: Ctrl-C 130, SIGTERM 143.
    ends_by_signal: whether SIGTERM is the usual end, as of a server. Then the end is not told.
    """
    shown = warnings.showwarning
    former = exit_at_signals()

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
        _fail(f'there is not enough memory ({error}). Take smaller images or batches, or end other programs.')
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        sys.exit(130)
    except SystemExit as error:
        if by_signal(error) and not ends_by_signal:
            print('stopped', file=sys.stderr)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _fail('no space is left on the disk for the output of this command; free some space.')
        if error.errno not in OF_PATHS or error.filename is None:
            raise
        _fail(f'{str(error.filename)!r} cannot be used: {error.strerror}. Give another path.')
    finally:
        restore(former)


@contextmanager
def way_on(text: Callable[[], str]) -> Iterator[None]:
    """If a signal ends the work within this context, says `text`: how to go on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, KeyboardInterrupt) or by_signal(error):
            print(f'\n{text()}', file=sys.stderr)  # a live table has no end of its line
        raise


def command_again(place: argparse.ArgumentParser | None = None, words: Sequence[str] = ()) -> str:
    """The command that the user has given, with `words` instead of the options that `place` has."""
    program = sys.argv[0].split() if sys.argv[0].startswith('vet ') else ['python', sys.argv[0]]
    processes = os.environ.get('WORLD_SIZE', '1')
    if processes != '1':
        here = os.environ.get('LOCAL_WORLD_SIZE', processes)
        program = ['torchrun', '--nproc-per-node', here, '--no-python', *program]
    others = place.parse_known_args(sys.argv[1:])[1] if place else sys.argv[1:]
    return shlex.join([*program, *others, *words])


def _fail(message: object) -> NoReturn:
    """Prints one message, and exits with code 2.

    A message that another process shows is not printed again.
    """
    if not isinstance(message, ToldError):
        print(f'error: {escaped(str(message))}', file=sys.stderr)
    sys.exit(2)


class Parser(argparse.ArgumentParser):
    """The parser of a command. Every command has --quiet. An unknown option is refused with near options."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.add_argument(
            '--quiet', action='store_true', help='print no progress: only results, warnings and errors'
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        from vet.log import show_log

        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = sorted(set(re.findall(r'--?[a-z][a-z-]*', self.format_help())))
            near = difflib.get_close_matches(unknown[0].partition('=')[0], known, n=2, cutoff=0.6)
            meant = f'; did you mean {" or ".join(near)}?' if near else ''
            self.error(f'unknown argument {escaped(unknown[0])}{meant}')
        show_log(found.quiet)
        return found


def add_backbone(parser: argparse.ArgumentParser) -> None:
    """Adds --backbone of the commands that read a model folder."""
    parser.add_argument('--backbone', metavar='PATH', help="the backbone's weights, if they have moved")


def add_import(parser: argparse.ArgumentParser) -> None:
    """--import, for commands that read a model folder. The folder names plugins, but holds no code."""
    parser.add_argument(
        '--import',
        dest='imports',
        action='append',
        default=[],
        metavar='MODULE',
        help='a Python module or file with your own plugins that the model uses',
    )


def import_plugins(modules: list[str]) -> None:
    """Imports modules, each by its name or by the path of its file."""
    for module in modules:
        path = Path(module)
        sys.path.append(str(path.parent.resolve()))
        try:
            with imports():
                importlib.import_module(path.stem if path.suffix == '.py' else module)
        except Exception as error:  # the user's own Python may raise any error
            raise UserError(f'--import {module} failed: {type(error).__name__}: {error}') from error


def add_common(parser: argparse.ArgumentParser) -> None:
    """--device and --data-root."""
    parser.add_argument('--device', help='cpu, cuda, cuda:1, … (default: the best device of the machine)')
    parser.add_argument(
        '--data-root', metavar='DIR', help='where the datasets are (default: $VET_DATA_ROOT, else ./data)'
    )


class Options(argparse.Action):
    """KEY=VALUE …. A value is a number, True, False, None, quoted text, [list], dict(…) or {dict}, as in a
    config file.

    Any other value is a text and stays unchanged. So a path with spaces or commas needs no more quotes.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        options = dict(getattr(namespace, self.dest, None) or {})
        for pair in values:
            key, equals, text = pair.partition('=')
            if not equals or not key:
                parser.error(f'{option_string} takes KEY=VALUE …; given: {escaped(pair)}')
            try:
                value = literal(text)
            except ValueError as error:
                parser.error(f'{option_string} takes KEY=VALUE …; given: {escaped(pair)} ({error})')
            options.pop(key, None)  # so that the last value of a key is applied last
            options[key] = value
        setattr(namespace, self.dest, options)


WORDS = {'true': True, 'false': False, 'none': None, 'null': None}
OPEN = {'[': ']', '(': ')', '{': '}'}


def literal(text: str) -> Any:
    """The value of a text in Python's notation. Any other text stays a text.

    Words in a list may stand without quotes. Nothing is executed. ValueError for a list or dict without an
    end.
    """
    stripped = text.strip()
    if stripped.lower() in WORDS:
        return WORDS[stripped.lower()]
    try:
        value = _value(ast.parse(stripped, mode='eval').body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _words(stripped) if stripped[:1] in ('[', '(') else _no_dict(text)
    is_allowed = isinstance(value, str | int | float | list | dict)  # no bytes, sets or complex numbers
    return value if is_allowed else text


def _words(text: str) -> list[object]:
    """[a, b] or (a, b), a list of words without quotes."""
    if not text.endswith(OPEN[text[0]]):
        raise ValueError(f'the list has no {OPEN[text[0]]}')
    parts = []
    depth = 0
    start = 1
    quote = ''
    for place, char in enumerate(text):
        if char in '"\'' and (quote == char or not quote and not text[start:place].strip()):
            quote = '' if quote else char
        if quote:
            continue  # commas and brackets inside quotes do not count
        depth += (char in OPEN) - (char in OPEN.values())
        if depth == 1 and char == ',' or depth == 0:
            if item := text[start:place].strip():
                parts.append(literal(item))
            start = place + 1
        if depth == 0 and place < len(text) - 1 or depth > 40:
            raise ValueError('the brackets do not fit')
    return parts


def _no_dict(text: str) -> str:
    if text.strip()[:1] == '{' or text.strip().startswith('dict('):
        raise ValueError('this is no dict of numbers, quoted texts, lists and dicts')
    return text


def _value(node: ast.expr) -> object:
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


def tell_next(run: Path, model: Path) -> None:
    """Prints the commands that come after a training on photos. run: the folder of the run. model: the work
    folder of the model to use.
    """
    print('what to type next:')
    print(f'  vet predict {shlex.quote(str(model))} NEW_PHOTOS')
    print(f'  vet train {shlex.quote(str(run / "config.py"))}')


def free_name(stem: str, taken: set[str]) -> str:
    """The stem of a file, with a number if `taken` has the stem. `taken` gets the name."""
    numbered = (f'{stem}-{number}' for number in itertools.count(2))
    name = next(name for name in itertools.chain([stem], numbered) if name not in taken)
    taken.add(name)
    return name
