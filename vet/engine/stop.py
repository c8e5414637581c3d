"""Stop: a signal asks a run to end. The run finishes its step and saves itself; then the signal goes to its
former handler.

The signals are SIGINT (Ctrl-C), SIGTERM and SIGHUP. A signal that was ignored before, as SIGHUP is under
nohup, stays ignored. Each signal has its former handler again as soon as the first one has come. So a second
signal stops at once.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import torch
from accelerate import Accelerator

SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]


class Asked(BaseException):
    """Raised by a signal within `Stop.interrupting`."""


class Stop:
    """Within, the first signal is noted. All processes of a run hear of the signal that one of them got.

    number: of the signal, 0 before it. Python handles signals in the main thread only; in other threads
        nothing is changed.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.number = accelerator, 0
        self._before: dict[int, Any] = {}
        self._interrupts = False
        self._group: Any = None

    def __enter__(self) -> 'Stop':
        if self._has_several() and torch.distributed.get_backend() != 'gloo':
            self._group = torch.distributed.new_group(backend='gloo')  # a GPU is not waited for
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()
        if self._group is not None:
            torch.distributed.destroy_process_group(self._group)

    def is_asked(self) -> bool:
        """Whether any process of the run got a signal. All processes ask at the same step, and get the
        same answer.
        """
        if self._has_several():
            number = torch.tensor([self.number])
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, self._group)
            self.number = int(number)
        return self.number > 0

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Within, a signal raises Asked at once, for work that may be broken off. Of several processes
        each ends its work.
        """
        self._interrupts = not self._has_several()
        try:
            if self._interrupts and self.number:
                raise Asked
            yield
        finally:
            self._interrupts = False

    def hand_on(self) -> NoReturn:
        """Gives the signal to its former handler; where that returns, the process ends with 128 + number."""
        self._restore()
        signal.raise_signal(self.number)
        sys.exit(128 + self.number)

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name

    def _has_several(self) -> bool:
        return self.accelerator.num_processes > 1

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()
        if self.accelerator.is_main_process:  # by the system: the console may be in the middle of a line
            os.write(
                2,
                f'\n{self.name}: the run ends after this step; the same signal again stops at once.\n'.encode(),
            )
        if self._interrupts:
            raise Asked

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
