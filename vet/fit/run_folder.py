"""The folder of vet fit and of vet tune: its name, and a lock that keeps other processes out."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vet.errors import UserError
from vet.lock import FileLock

LOCK = '.lock'


def new_run(source: Path, out: str | None, prefix: str = '') -> Path:
    """The folder of a run: `out`, or runs/PHOTOS/TIME. prefix: of PHOTOS."""
    if out is not None:
        return Path(out)
    name = source.resolve().name.partition('.')[0]
    return Path('runs') / f'{prefix}{name}' / time.strftime('%Y%m%d-%H%M%S')


@contextmanager
def run_folder(run: Path, begun: str | None = None) -> Iterator[None]:
    """Makes the folder of a run. Within this context, no other process begins a run there.

    The folder is taken if it is empty. begun: a file; a folder with this file holds a run that goes on.
    UserError if the folder cannot be used.
    """
    lock = FileLock(run / LOCK)
    try:
        run.mkdir(parents=True, exist_ok=True)
        _refuse_used(run, begun)  # before the lock leaves a file there
        is_free = lock.acquire(wait=False)
    except FileExistsError as error:
        raise _exists(run) from error
    except OSError as error:
        raise UserError(
            f'the folder {str(run)!r} cannot be made: {error.strerror}. Call the command from a folder that '
            'you can write to, or give --out DIR.'
        ) from error
    if not is_free:
        raise UserError(
            f'another process writes in {str(run)!r} now. Wait until it ends, or give --out the path of a '
            'new folder.'
        )
    try:
        _refuse_used(run, begun)  # a run may have ended since the first look
        yield
    finally:
        lock.release()


def _refuse_used(run: Path, begun: str | None) -> None:
    if begun is not None and (run / begun).exists():
        return
    if any(path.name != LOCK for path in run.iterdir()):
        raise _exists(run)


def _exists(run: Path) -> UserError:
    return UserError(f'{str(run)!r} exists. Give --out the path of a new folder.')
