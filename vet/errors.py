"""The errors a user can cause. A command shows their text, without a traceback, and exits with 2."""

import difflib
from collections.abc import Iterable

QUOTES = '"\''


def shown(value: object, most: int = 300) -> str:
    """`value` as Python writes it, for a message: cut where it is long; of a value that is too deep to
    write, its type.
    """
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # a deep list; a whole number of thousands of digits
        return f'a {type(value).__name__} that is too deep or too long to show'
    return text if len(text) <= most else f'{text[:most]}…'


class UserError(ValueError):
    """A mistake in what the user gave: the text says what, what was given, what is allowed and what to do.

    Control characters in it are shown escaped: a file of a stranger may put some into the text, which reaches
    a terminal.
    """

    def __init__(self, text: object = ''):
        super().__init__(
            ''.join(part if part.isprintable() or part == '\n' else repr(part)[1:-1] for part in str(text))
        )


class UnknownNameError(UserError):
    """A name that nothing answers to, with the names nearest to it: `near`, or those of the allowed
    names that look alike.
    """

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
    """A dataset, image or weight file that is missing, broken or not what was asked for."""


class DataWarning(UserWarning):
    """Something about the images that a user should know, though it is no mistake."""


class NoSiteError(UserError):
    """A tuner asked for sites that the backbone does not have, or cannot act on the ones it has."""


class TrainingError(UserError):
    """Training cannot go on: the loss is not finite, the disk is full, the work folder belongs to
    another run.
    """


class ToldError(TrainingError):
    """An error that another process of the run has raised, and shows."""


class DivergedError(TrainingError):
    """The loss or what trains is no longer finite: the same config would end so again."""
