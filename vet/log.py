"""Progress and messages of vet while it works.

vet logs by `logging`, under the name vet: lines of progress as INFO, and warnings as WARNING. A command shows
the log on stderr (`show_log`). In Python, `logging.basicConfig(level='INFO')` shows the log, and
`logging.getLogger('vet').setLevel('WARNING')` hides lines and bars.
"""

import logging

from vet.terminal import Terminal

console = Terminal(stderr=True, highlight=False)  # of progress; --quiet silences it
LOG = logging.getLogger('vet')


class OnConsole(logging.Handler):
    """Prints a line unchanged: no markup, no emoji, and a long line is not broken."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING or not console.quiet:
            target = Terminal(stderr=True, highlight=False) if console.quiet else console
            target.print(self.format(record), soft_wrap=True, markup=False, emoji=False)


def show_log(quiet: bool = False) -> None:
    """Shows the log on stderr, for a command. quiet: only warnings, and no bars."""
    console.quiet = quiet
    if not any(isinstance(handler, OnConsole) for handler in LOG.handlers):
        LOG.addHandler(OnConsole())
        LOG.setLevel(logging.INFO)
        LOG.propagate = False


def say(text: str) -> None:
    """Logs a line of progress."""
    LOG.info('%s', text)


def warn(text: str) -> None:
    """Logs a line that the user should read."""
    LOG.warning('%s', text)


def shows_bars() -> bool:
    """Whether bars are shown: on a terminal, unless --quiet or the level of the log hides progress."""
    return console.is_terminal and not console.quiet and LOG.level <= logging.INFO
