"""The errors that a user can cause. A command shows their text without a traceback, and exits with 2."""

import difflib
from collections.abc import Iterable

QUOTES = '"\''


def shown(value: object, most: int = 300) -> str:
    """`value` as Python writes it, for a message. A long text is cut after `most` characters.

    If the value is too deep or has too many parts, the text names its type alone.
    """
    try:
        text = f'a {type(value).__name__} with too many parts to show' if _is_vast(value) else repr(value)
    except (RecursionError, ValueError):  # a deep list; a whole number of thousands of digits
        return f'a {type(value).__name__} that is too deep or too long to show'
    return text if len(text) <= most else f'{text[:most]}…'


def error_text(error: Exception) -> str:
    """The kind and the first line of another library's error, for a message: 'RuntimeError: …'."""
    said = next(iter(str(error).strip().splitlines()), '')[:300].rstrip('. ')
    return f'{type(error).__name__}: {said}' if said else type(error).__name__


def _is_vast(value: object) -> bool:
    """Whether the value has more than 10,000 parts, each counted as often as it is written.

    A list that holds another list ten times, which holds a third ten times, …, is small in memory. Its repr
    fills the memory.
    """
    waiting = [value]
    seen = 0
    while waiting and seen <= 10_000:
        inner = waiting.pop()
        seen += 1
        if isinstance(inner, dict):
            waiting += [*inner, *inner.values()]
        elif isinstance(inner, list | tuple | set | frozenset):
            waiting += inner
    return bool(waiting)


class UserError(ValueError):
    """A mistake in the user's input. The text names the mistake, the given value, the allowed values and the
    fix.

    Control characters in the text are escaped. A stranger's file may contain such characters, and the text
    reaches a terminal.
    """

    def __init__(self, text: object = ''):
        super().__init__(
            ''.join(
                character if character.isprintable() or character == '\n' else repr(character)[1:-1]
                for character in str(text)
            )
        )


class UnknownNameError(UserError):
    """An unknown name. The text suggests the names `near`, or the allowed names that look alike."""

    def __init__(
        self, what: str, given: object, allowed: Iterable[str], advice: str = '', near: Iterable[str] = ()
    ):
        names = sorted(map(str, allowed))
        lower = {name.lower(): name for name in names}
        word = shown(given).strip(QUOTES).lower()
        near = list(near) or [lower[name] for name in difflib.get_close_matches(word, lower, n=3, cutoff=0.5)]
        meant = f' Did you mean {" or ".join(map(repr, near))}?' if near else ''
        listed = ', '.join(names) if len(names) <= 40 else f'{", ".join(names[:40])}, … ({len(names)} in all)'
        super().__init__(
            f'unknown {what} {shown(given)}.{meant} Allowed: '
            f'{listed or "none"}.{" " + advice if advice else ""}'
        )


class DataError(UserError):
    """A dataset, image or weight file that is missing, broken, or different from the expected file."""


class NetworkNeededError(DataError):
    """A model was tuned on a network that vet cannot build. No file helps: the user gives the network."""


class DataWarning(UserWarning):
    """A fact about the images that a user should know. The fact is no mistake."""


class NoSiteError(UserError):
    """A tuner asked for sites that the backbone does not have, or the tuner cannot act on the sites."""


class TrainingError(UserError):
    """Training cannot continue, for example because the disk is full, or the work folder belongs to another
    run.
    """


class ToldError(TrainingError):
    """An error that another process of the run has raised. That process shows the error."""


class DivergedError(TrainingError):
    """The loss or a trained parameter is no longer finite. The same config would fail again."""
