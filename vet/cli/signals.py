"""Lets a signal end a command: at once during the imports, and by an exception while the command works."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

Handler = Callable[[int, FrameType | None], object]
Handlers = dict[int, Any]  # by the number of the signal, as signal.signal takes and gives them


def stop_at_once() -> Handlers:
    """From now on, a signal ends the process at once, with 128 + n. Handlers that the user has set stay.

    During imports there is nothing to save, and imported code could catch an exception. Returns the former
    handlers.
    """
    return _handle(lambda name: _stop, (signal.SIG_DFL, signal.default_int_handler))


@contextmanager
def imports() -> Iterator[None]:
    """Within this context, which is for slow imports, a signal ends the process at once."""
    former = _handle(lambda name: _stop)
    try:
        yield
    finally:
        restore(former)


def exit_at_signals() -> Handlers:
    """From now on, Ctrl-C raises KeyboardInterrupt. SIGTERM and SIGHUP end the process by sys.exit, with 128
    + n.

    A signal that is ignored, as SIGHUP under nohup, stays ignored. Returns the former handlers.
    """
    return _handle(lambda name: signal.default_int_handler if name == 'SIGINT' else _exit)


def restore(former: Handlers) -> None:
    for number, handler in former.items():
        signal.signal(number, handler)


def _handle(handler: Callable[[str], Handler], only: tuple[object, ...] = ()) -> Handlers:
    """Sets handlers, and returns the former ones. only: the handlers that may be replaced; () means all."""
    former: Handlers = {}
    if threading.current_thread() is threading.main_thread():
        for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):
            number = getattr(signal, name, None)
            if number is None:
                continue  # Windows has no SIGHUP
            found = signal.getsignal(number)
            if found not in (signal.SIG_IGN, None) and (not only or found in only):
                former[number] = signal.signal(number, handler(name))
    return former


def by_signal(error: SystemExit) -> bool:
    """Whether a signal other than Ctrl-C ends the process."""
    return isinstance(error.code, int) and error.code > 128


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b'stopped\n')
    os._exit(128 + number)
