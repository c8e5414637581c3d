"""The display of running work.

A training shows a bar with loss, accuracy and time left, and a line for each epoch. Many images show a count.
"""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vet.log import console, say, shows_bars


class ProgressBar:
    """A bar over all steps of a run.

    Only the first process prints. Without a terminal, only lines are printed.
    """

    def __init__(self, total: int, done: int, enabled: bool):
        self.enabled = enabled
        self._bar = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn('{task.fields[state]}'),
            TextColumn('left'),
            TimeRemainingColumn(),
            console=console,
            disable=not (enabled and shows_bars()),
            transient=True,
        )
        self._task = self._bar.add_task('training', total=total, completed=done, state='')

    def update(self, step: int, epoch: str, state: str) -> None:
        """Shows that `step` steps are done, and the `state` of training: its loss and accuracy."""
        self._bar.update(self._task, completed=step, description=epoch, state=state)

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        if self.enabled:
            say(line)

    def __enter__(self) -> 'ProgressBar':
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


T = TypeVar('T')
LINES = 10  # of `counted` without a bar


def counted(items: Iterable[T], total: int, has_bar: bool) -> Iterator[T]:
    """The items, while the log on stderr counts them. has_bar: a bar, if stderr is a terminal; else lines."""
    if has_bar and shows_bars():
        # text that the caller prints goes to stdout unchanged
        with Progress(
            *Progress.get_default_columns(), MofNCompleteColumn(), console=console, redirect_stdout=False
        ) as bar:
            yield from bar.track(items, total, description='images')
        return
    every = max(-(-total // LINES), 100)
    for number, item in enumerate(items, 1):
        yield item
        if number % every == 0 or number == total:
            say(f'{number:,} of {total:,} images')
