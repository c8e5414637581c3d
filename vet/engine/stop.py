"""Stop: a signal asks a run to end. The run finishes its step and saves itself. Then the former handler gets
the signal.

The signals are SIGINT (Ctrl-C), SIGTERM and SIGHUP. A signal that was ignored before, such as SIGHUP under
nohup, stays ignored. After the first signal, each signal has its former handler again. So a second signal
stops at once.
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


class StopRequested(BaseException):
    """Raised by a signal within `Stop.interrupting`."""


class Stop:
    """Within this context, the first signal is noted. All processes of a run hear of it.

    number: of the signal; 0 before a signal. Python handles signals only in the main thread. In other
        threads, nothing changes.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.number = 0
        self._before: dict[int, Any] = {}
        self._interrupts = False
        self._process = os.getpid()
        self._group: Any = None

    def __enter__(self) -> 'Stop':
        if self._has_several() and torch.distributed.get_backend() != 'gloo':
            self._group = torch.distributed.new_group(backend='gloo')  # so that no process waits for a GPU
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
        """Whether any process of the run got a signal.

        All processes ask at the same step, and get the same answer.
        """
        if self._has_several():
            number = torch.tensor([self.number])
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, self._group)
            self.number = int(number)
        return self.number > 0

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Within this context, a signal raises StopRequested at once, for work that may be broken off.

        If there are several processes, each finishes its work.
        """
        self._interrupts = not self._has_several()
        try:
            if self._interrupts and self.number:
                raise StopRequested
            yield
        finally:
            self._interrupts = False

    def redeliver(self) -> NoReturn:
        """Gives the signal to its former handler.

        If the handler returns, the process ends with 128 + number.
        """
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
        if os.getpid() != self._process:  # a worker of the loader, which has inherited the handler
            return
        if self.accelerator.is_main_process:  # os.write, because the console may be in the middle of a line
            text = f'\n{self.name}: the run ends after this step; the same signal again stops at once.\n'
            os.write(2, text.encode())
        if self._interrupts:
            raise StopRequested

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
