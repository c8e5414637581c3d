"""Archives of published datasets: downloaded, compared with a known hash, and unpacked into one folder.

An archive is data from a stranger. vet takes only plain files and folders from an archive. vet refuses a path
outside the folder, a link, a device, and an archive that grows out of all proportion. Then vet keeps nothing
of the archive.
"""

import errno
import hashlib
import os
import ssl
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from vet.datasets.web import DownloadError, fetch_file
from vet.errors import DataError

DOWNLOAD_SECONDS = 24 * 3600
ARCHIVES = ('.tar', '.tgz', '.gz', '.zip')
GROWTH = 200  # an archive may hold this many times its own bytes: images hardly grow, zeros grow 1,000 times
# a name that no file system takes, or a file in the place of a folder
WRONG_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL)
SMALL = 2**20  # bytes that any archive may hold, whatever its size
# kinds of members that hold no file: tarfile reads the whole name or the whole comment into memory
HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


@dataclass(frozen=True)
class Download:
    """A published file: its URL, and the hash that its makers, or a library, give for the file."""

    url: str
    digest: str  # 'md5:…' or 'sha256:…'

    @property
    def name(self) -> str:
        return self.url.rsplit('/', 1)[-1]


def fetch(download: Download, folder: Path) -> Path:
    """Downloads the file to `folder` and checks its hash.

    OSError of the network; DataError for another hash.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / download.name
    try:
        fetch_file(download.url, path, DOWNLOAD_SECONDS)
    except DownloadError as error:
        if not isinstance(getattr(error.__cause__, 'reason', None), ssl.SSLCertVerificationError):
            raise
        # the hash decides whether the file is right, so the connection may be unsafe
        fetch_file(download.url.replace('https:', 'http:', 1), path, DOWNLOAD_SECONDS)
    kind, _, wanted = download.digest.partition(':')
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    if digest != wanted:
        size = path.stat().st_size
        path.unlink()
        raise DataError(
            f'{download.name} is corrupted or another file: its {kind} is {digest}, of {size:,} bytes; the '
            f'published file has {wanted}'
        )
    return path


def provide(download: Download, folder: Path) -> None:
    """Downloads the file to `folder`. An archive is unpacked there, and deleted."""
    path = fetch(download, folder)
    if path.suffix in ARCHIVES:
        unpack(path, folder)
        path.unlink()


def fetch_whole(url: str, path: Path) -> None:
    """Downloads the file of a URL whose hash the caller compares. OSError of the network."""
    fetch_file(url, path, DOWNLOAD_SECONDS)


def unpack_whole(archive: Path, folder: Path) -> None:
    """The same as `unpack`, but files and folders appear in `folder` only after the whole archive is
    unpacked.

    The reason: a reader that finds a folder expects a complete folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.unpack-') as name:
        unpack(archive, Path(name))
        for path in Path(name).iterdir():
            _move(path, folder / path.name)


def _move(path: Path, place: Path) -> None:
    """Moves a file or a folder. A folder that is there keeps its other files."""
    if path.is_dir() and place.is_dir():
        for inner in path.iterdir():
            _move(inner, place / inner.name)
    else:
        os.replace(path, place)


class _Member(tarfile.TarInfo):
    """A member of an archive. A header of more than SMALL bytes is refused before it is read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> '_Member':
        member = super().frombuf(buf, encoding, errors)
        if member.type in HEADERS and member.size > SMALL:
            raise DataError(
                f'the archive holds a header of {member.size:,} bytes at {member.name!r}; allowed: {SMALL:,}'
            )
        return member


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks the plain files and folders of a tar or zip file into `folder`.

    DataError, with the member's name, for anything else.
    """
    try:
        try:
            tar = tarfile.open(archive, tarinfo=_Member)
        except tarfile.ReadError:
            # this comes second: a tar file with a zip file at its end looks like a zip file
            if not zipfile.is_zipfile(archive):
                raise
            _unpack_zip(archive, folder)
        else:
            with tar:
                tar.extractall(folder, filter=only_plain(archive.stat().st_size))
                _require_end(tar)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        zlib.error,
    ) as error:
        reason = str(error).splitlines()[0].rstrip(':')
        raise DataError(
            f'{archive.name} cannot be unpacked: {reason}. Copy the archive again, or unpack the archive '
            'with another program and give the folder.'
        ) from error
    except OSError as error:
        if error.errno not in WRONG_NAMES:
            raise
        name = str(error.filename)[-200:]
        raise DataError(f'{archive.name} cannot be unpacked: {error.strerror}, for {name!r}') from error
    folder.mkdir(parents=True, exist_ok=True)  # an archive of nothing


def _require_end(tar: tarfile.TarFile) -> None:
    """ReadError if the archive, read to its end, has no block of zeros there.

    tarfile takes an archive that is cut between two members for a whole archive.
    """
    if tar.fileobj is not None and tar.fileobj.tell() < tar.offset + tarfile.BLOCKSIZE:
        raise tarfile.ReadError('the archive ends before its end mark')


def only_plain(archive_bytes: int) -> Callable[[tarfile.TarInfo, str], tarfile.TarInfo]:
    """A filter for tarfile's extractall. The filter passes plain files and folders that stay inside.

    The filter passes at most GROWTH times the bytes of the archive.
    """
    room = [GROWTH * archive_bytes + SMALL]

    def passed(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
        if not (member.isreg() or member.isdir()):
            raise DataError(f'the archive holds {member.name!r}, which is a link or a device, not a file')
        if member.isreg():
            _require_name(member.name)
        room[0] -= member.size
        _check(member.name, room[0])
        return tarfile.data_filter(member, folder)

    return passed


@contextmanager
def only_plain_by_default() -> Iterator[None]:
    """Within this context, each call of tarfile's extractall refuses what `only_plain` refuses.

    torchvision's calls give no filter. zipfile needs no filter: its extractall stays inside, and makes
    neither links nor devices.
    """
    before = tarfile.TarFile.__dict__.get('extraction_filter')
    filtered = staticmethod(only_plain(2**40))
    tarfile.TarFile.extraction_filter = filtered  # type: ignore[assignment]  # a staticmethod
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before  # type: ignore[assignment]  # may be None


def _unpack_zip(archive: Path, folder: Path) -> None:
    room = GROWTH * archive.stat().st_size + SMALL
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            # the first bits of a Unix mode: 0o10 is a file, 0o4 a folder, 0 unknown
            kind = member.external_attr >> 28
            if kind not in (0, 0o10, 0o4):
                raise DataError(
                    f'the archive holds {member.filename!r}, which is a link or a device, not a file'
                )
            if not member.filename.endswith('/'):
                _require_name(member.filename)
            room -= member.file_size
            _check(member.filename, room)
        file.extractall(folder)


def _require_name(name: str) -> None:
    """DataError for the name of a file that would lie in the place of the folder itself."""
    if not name.strip('./'):
        raise DataError(f'the archive holds a file without a name: {name!r}')


def _check(name: str, room: int) -> None:
    if not is_inside(name):
        raise DataError(f'the archive holds {name!r}, which leads outside its folder')
    if room < 0:
        raise DataError(f'the archive holds more than {GROWTH} times its own bytes by {name!r}')


def is_inside(name: str) -> bool:
    """Whether a relative path of an archive or a list stays below its folder, on every operating system."""
    return not any(
        '..' in path.parts or path.is_absolute() or path.drive or path.root
        for path in (PurePosixPath(name), PureWindowsPath(name))
    )
