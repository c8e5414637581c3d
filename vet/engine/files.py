"""Files and folders that appear and go whole or not at all: written under a temporary name, flushed, renamed."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vet.errors import TrainingError

TEMPORARY = '.*.[0-9]*.tmp'   # what a killed process leaves behind


def write_file(path: Path, data: bytes | str) -> None:
    """Puts `data` at `path` by one rename. TrainingError when the disk is full; what was there before stays."""
    temporary = _temporary(path)
    with writing(path):
        try:
            with open(temporary, 'wb') as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


def publish_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Makes the folder `path` by one rename, after `fill(temporary folder)` has written its files. Replaces an old one."""
    temporary = _temporary(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            fill(temporary)
            sync(temporary)
            old = _put_aside(path) if path.exists() else None
            os.rename(temporary, path)
            if old:
                shutil.rmtree(old)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync(path.parent)


def remove_folder(path: Path) -> None:
    """Removes the folder, by a rename first: half of it is never there under its own name."""
    shutil.rmtree(_put_aside(path))


def remove_temporary(folder: Path) -> None:
    """Removes what a process that was killed had begun to write in `folder`."""
    for path in folder.glob(TEMPORARY):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _temporary(path: Path, what: str = '') -> Path:
    return path.with_name(f'.{path.name}{what}.{os.getpid()}.tmp')


def _put_aside(path: Path) -> Path:
    old = _temporary(path, '.old')
    os.rename(path, old)
    return old


def sync(path: Path) -> None:
    """Waits until the disk has a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within, what the disk refuses becomes a TrainingError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TrainingError(f'no space is left to write {str(path)!r}. What was saved before is untouched: '
                                f'free some space, then go on with --resume auto.') from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR):
            raise TrainingError(f'cannot write {str(path)!r}: {error.strerror}. Choose another folder with --work-dir.') from error
        raise
