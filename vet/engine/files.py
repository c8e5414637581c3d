"""Files and folders that appear whole or not at all: written under a temporary name, flushed, renamed."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from vet.errors import TrainingError


def write_file(path: Path, data: bytes | str) -> None:
    """Puts `data` at `path` by one rename. TrainingError when the disk is full; what was there before stays."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _explained(error, path) from error
    _sync(path.parent)


def publish_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Makes the folder `path` by one rename, after `fill(temporary folder)` has written its files. Replaces an old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        fill(temporary)
        _sync(temporary)
        if path.exists():
            old = path.with_name(f'.{path.name}.{os.getpid()}.old')
            os.rename(path, old)
            os.rename(temporary, path)
            shutil.rmtree(old)
        else:
            os.rename(temporary, path)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explained(error: OSError, path: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TrainingError(f'no space is left to write {str(path)!r}. What was saved before is untouched: '
                             f'free some space, then go on with --resume auto.')
    if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR):
        return TrainingError(f'cannot write {str(path)!r}: {error.strerror}. Choose another folder with --work-dir.')
    return error
