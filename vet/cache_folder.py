"""The cache folder: $VET_CACHE_DIR, or ~/.cache/vet. Its files may be deleted at any time.

Any number of processes may make a file at the same time.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vet.lock import FileLock

FULL = 0.9  # the largest share of the free space for a file


def cache_path(name: str) -> Path:
    return Path(os.environ.get('VET_CACHE_DIR') or '~/.cache/vet').expanduser() / name


def make_once(path: Path, fill: Callable[[Path], None]) -> None:
    """If there is no file at `path`: calls `fill(temporary path)`, then renames the file. Other processes
    wait.

    An existing file is only read. So the folder may be read-only.
    """
    if path.exists():
        return
    with locked(path) as temporary:
        if not path.exists():
            fill(temporary)
            os.replace(temporary, path)


@contextmanager
def locked(path: Path) -> Iterator[Path]:
    """Within this context, no other process works on `path`.

    Gives the name of a temporary file, which is removed afterwards.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f'{path.name}.lock')).held():
        for left in path.parent.glob(f'.{path.name}.*.tmp'):  # of a process that was killed; the lock is ours
            left.unlink()
        temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def cannot_keep(path: Path, error: OSError) -> str:
    """The reason why nothing can be kept in the cache folder, and help."""
    reason = 'it is full' if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
    return (
        f'the cache folder {str(path.parent)!r} cannot be used ({reason}); set VET_CACHE_DIR to another '
        'folder'
    )
