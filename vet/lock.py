"""A lock of the operating system on a file.

One process at a time holds the lock. The lock ends with the process.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # mypy takes the name for a module

# the answers of a file system without locks
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)

_HELD: set[int] = set()  # the handles of all locks that this process holds


class FileLock:
    """An exclusive lock on the file or the folder `path`. A missing file is made. The file stays.

    On Linux and macOS the lock is flock, which works on NFS too. Windows locks the first byte of the file. If
    the file system has no locks, `is_real` is False, and no other process is kept out.
    """

    def __init__(self, path: Path):
        self.path = path
        self.is_real = True
        self._handle: int | None = None

    def acquire(self, wait: bool = True) -> bool:
        """Whether the lock is held now. wait: waits until another process releases the lock.

        OSError if the file cannot be made.
        """
        if self.path.is_dir():
            if fcntl is None:
                self.is_real = False
                return True
            handle = os.open(self.path, os.O_RDONLY)
        else:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(handle, wait):
                os.close(handle)
                return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(handle)
                raise
            self.is_real = False
        self._handle = handle
        _HELD.add(handle)
        return True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within this context, the lock is held. The context begins when no other process holds the lock.

        OSError if the file cannot be made.
        """
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def is_in_place(self) -> bool:
        """Whether the file at `path` is still the file that was locked."""
        try:
            return self._handle is not None and os.path.samestat(os.fstat(self._handle), os.stat(self.path))
        except OSError:
            return False

    def release(self) -> None:
        if self._handle in _HELD:  # a forked child does not hold it
            _HELD.discard(self._handle)
            os.close(self._handle)
        self._handle = None


def _lock(handle: int, wait: bool) -> bool:
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return True
        return _lock_on_windows(handle, wait)
    except (BlockingIOError, PermissionError):
        return False


def _lock_on_windows(handle: int, wait: bool) -> bool:
    msvcrt: Any = __import__('msvcrt')
    while True:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK if not wait else msvcrt.LK_LOCK, 1)
            return True
        except OSError as error:  # LK_LOCK gives up after ten tries, a second apart
            if not wait or error.errno != errno.EDEADLOCK:
                raise


def _forget() -> None:
    """A forked child has the handles too. It closes them, or it would hold the locks as long as it lives."""
    for handle in _HELD:
        os.close(handle)
    _HELD.clear()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_forget)
