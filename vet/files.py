"""Writes files and folders so that they appear whole or not at all: temporary name, flush, rename.

`read_json` checks a JSON file, and raises a DataError for a damaged file. core.tensor_file reads and checks
tensors.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vet.errors import DataError, TrainingError, UserError

JsonObject = dict[str, Any]  # json.loads gives such a dict; its readers check the values
TEMPORARY = '.*.[0-9]*.tmp'  # the names of files that a killed process leaves behind


def write_file(path: Path, data: bytes | str) -> None:
    """Puts `data` at `path` by one rename. TrainingError if the disk is full. Then the old file stays."""
    with new_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write. Its content stands at `path` when the context ends without an error, by one rename.

    After an error, the old file stays. TrainingError if the disk is full, or refuses the file.
    """
    temporary = _temporary(path)
    with writing(path):
        try:
            with open(temporary, 'wb') as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


def publish_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Makes the folder `path` by one rename, after `fill(temporary folder)` has written its files.

    An old folder is replaced.
    """
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
    """Renames the folder, then removes it. So a half-removed folder never has the folder's name."""
    shutil.rmtree(_put_aside(path))


def remove_temporary(folder: Path) -> None:
    """Removes the unfinished files in `folder` of processes that were killed."""
    for path in folder.glob(TEMPORARY):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _temporary(path: Path, kind: str = '') -> Path:
    return path.with_name(f'.{path.name}{kind}.{os.getpid()}.tmp')


def _put_aside(path: Path) -> Path:
    old = _temporary(path, '.old')
    os.rename(path, old)
    return old


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk. Windows cannot wait for a folder."""
    if os.name == 'nt' and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within this context, an error of the disk becomes a TrainingError that says what to do."""
    try:
        yield
    except OSError as error:
        raise TrainingError(f'{_refused(path, error)} What was saved before is untouched.') from error


def _refused(path: Path, error: OSError) -> str:
    """The reason why the disk refuses to write a file, and what to do."""
    goes_on = 'then try again; a run goes on with --resume auto (from Python: resume="auto").'
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f'no space is left to write {str(path)!r}. Free some space, {goes_on}'
    if error.errno == errno.EFBIG:
        return (
            f'{str(path)!r} grows beyond the size that this system allows for a file (ulimit -f). Raise the '
            f'limit, {goes_on}'
        )
    if error.errno in (errno.ENOENT, errno.ESTALE):
        return (
            f'cannot write {str(path)!r}: its folder does not exist, or was moved or removed. Make the '
            f'folder or put the folder back, {goes_on}'
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f'cannot write {str(path)!r}: {error.strerror}. Make the folder writable, {goes_on} Or choose '
            'another folder (of a run: with --work-dir).'
        )
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
        return (
            f'cannot write {str(path)!r}: {error.strerror}. Choose another folder (of a run: with '
            '--work-dir).'
        )
    return f'cannot write {str(path)!r}: {error.strerror or error}. Look at the disk, {goes_on}'


def refuse_input(option: str, path: str | Path, inputs: Iterable[str | Path]) -> None:
    """UserError if a command would write over a file that it reads. option: by which `path` is given."""
    if not os.path.exists(path):
        return
    for read in inputs:
        if os.path.exists(read) and os.path.samefile(path, read):
            raise UserError(
                f'{option} is {str(path)!r}, a file that this command reads. Give the path of another file.'
            )


def refuse_folder_of_inputs(option: str, folder: str | Path, inputs: Iterable[str | Path]) -> None:
    """UserError if a command would write into a folder of files that it reads: names may be the same."""
    place = os.path.realpath(folder)
    for read in inputs:
        if os.path.dirname(os.path.realpath(read)) == place and os.path.exists(read):
            raise UserError(
                f'{option} is {str(folder)!r}, the folder of {str(read)!r}, which could be written over. '
                'Give another folder.'
            )


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """DataError for a link out of the folder, which could name any file of this machine.

    Links of the hub's client into its cache are allowed.
    """
    allowed = folder.resolve(), folder.resolve().parent.parent / 'blobs'
    for name in names:
        try:
            target = (folder / name).resolve()
        except (OSError, RuntimeError) as error:  # a link to itself
            raise DataError(f'{str(folder / name)!r} cannot be read: {error}.') from error
        if not any(target.is_relative_to(place) for place in allowed):
            raise DataError(
                f'{str(folder / name)!r} is a link out of its folder, and is refused; put the file itself '
                'there.'
            )


def read_bytes(path: Path) -> bytes:
    """All bytes of a regular file.

    DataError if the file is missing, or is a pipe or a device, which may never end.
    """
    try:
        if not path.is_file():
            raise DataError(f'{str(path)!r} {"is no regular file" if path.exists() else "does not exist"}.')
        return path.read_bytes()
    except OSError as error:
        raise DataError(f'{str(path)!r} cannot be read: {error.strerror}.') from error


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    DataError for a file that is missing, cut short, no JSON, or nested too deep.
    """
    try:
        return json.loads(read_bytes(path).decode())
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f'{str(path)!r} holds no valid JSON: {str(error).splitlines()[0]}.') from error
