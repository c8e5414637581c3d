"""The cache folder, $VET_CACHE_DIR, else ~/.cache/vet: files that are made once, by any number of processes. It may be deleted."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = 0.9                                      # of the free space: more no file may take


def cache_path(name: str) -> Path:
    return Path(os.environ.get('VET_CACHE_DIR') or '~/.cache/vet').expanduser() / name


def make_once(path: Path, fill: Callable[[Path], None]) -> None:
    """Puts a file at `path`, where none is, by one rename after `fill(temporary path)` has written all of it; others wait."""
    with locked(path) as temporary:
        if not path.exists():
            fill(temporary)
            os.replace(temporary, path)


@contextmanager
def locked(path: Path) -> Iterator[Path]:
    """Within, no other process is: for what becomes of `path`. Gives the temporary file to write, which is gone after it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f'{path.name}.lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in path.parent.glob(f'.{path.name}.*.tmp'):    # by a process that was killed: the lock is ours
            left.unlink()
        temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
