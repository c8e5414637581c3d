"""The cache folder, $VET_CACHE_DIR, else ~/.cache/vet: files that are made once, by any number of
processes. It may be deleted.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vet.lock import FileLock

FULL = 0.9  # of the free space: more no file may take


def cache_path(name: str) -> Path:
    return Path(os.environ.get('VET_CACHE_DIR') or '~/.cache/vet').expanduser() / name


def make_once(path: Path, fill: Callable[[Path], None]) -> None:
    """Puts a file at `path`, where none is, by one rename after `fill(temporary path)` has written all of it;
    others wait.

    A file that is there is only read: the folder may be read-only.
    """
    if path.exists():
        return
    with locked(path) as temporary:
        if not path.exists():
            fill(temporary)
            os.replace(temporary, path)


@contextmanager
def locked(path: Path) -> Iterator[Path]:
    """Within, no other process is: for what becomes of `path`. Gives the temporary file to write, which
    is gone after it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f'{path.name}.lock'))
    lock.acquire()
    try:
        for left in path.parent.glob(f'.{path.name}.*.tmp'):  # by a process that was killed: the lock is ours
            left.unlink()
        temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
    finally:
        lock.release()


def cannot_keep(path: Path, error: OSError) -> str:
    """Why nothing can be kept in the cache folder, and what helps."""
    reason = 'it is full' if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
    return f'the cache folder {str(path.parent)!r} cannot be used ({reason}); set VET_CACHE_DIR to another folder'
