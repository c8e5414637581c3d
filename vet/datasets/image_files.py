"""Finds the image files in a folder, at any depth, and lists the files that are left out.

Training and prediction use the same list.
"""

import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image, features

from vet.datasets.image import PROGRAMS
from vet.errors import DataWarning

# formats that Pillow decodes only if it was built with these features
NEEDS = {'AVIF': 'avif', 'WEBP': 'webp', 'JPEG2000': 'jpg_2000'}
STUBS = ('BUFR', 'GRIB', 'HDF5', 'MPEG', 'WMF')  # formats that Pillow recognises but does not decode
PICTURES = (
    '.3fr',
    '.arw',
    '.avif',
    '.cr2',
    '.cr3',
    '.dcm',
    '.dng',
    '.eps',
    '.exr',
    '.hdr',
    '.heic',
    '.heif',
    '.jp2',
    '.jxl',
    '.nef',
    '.nii',
    '.nrrd',
    '.orf',
    '.pdf',
    '.raf',
    '.raw',
    '.rw2',
    '.svg',
    '.webp',
    '.xcf',
)
EXTRA = ('.heic', '.heif', '.hif', '.jxl')  # photos of phones, which the extra `heic` decodes
CLUTTER = ('thumbs.db', 'desktop.ini', 'icon\r')  # files of file managers
CLUTTER_FOLDERS = ('__macosx', '@eadir', '$recycle.bin', '__pycache__')


@dataclass
class Found:
    """The files in a folder. images: paths. left_out: {reason: paths}, without hidden files and clutter."""

    images: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, path: str) -> None:
        self.left_out.setdefault(reason, []).append(path)

    def add(self, other: 'Found') -> None:
        self.images += other.images
        for reason, paths in other.left_out.items():
            self.left_out.setdefault(reason, []).extend(paths)

    def says(self) -> str:
        """A text of what was left out: '2 x .heic, which Pillow does not read (cat/a.heic, …)'.

        The text is empty if no file was left out.
        """
        return '; '.join(
            f'{len(paths)} x {reason} (such as {printable(paths[0])})'
            for reason, paths in sorted(self.left_out.items())
        )


@cache
def extensions() -> frozenset[str]:
    """The file name extensions of all formats that the installed Pillow decodes.

    Extensions of Pillow's plugins count, if the plugins are imported.
    """
    missing = {name for name, feature in NEEDS.items() if not features.check(feature)}
    decoded = {
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in missing and name not in (*STUBS, *PROGRAMS)
    }
    return frozenset(decoded | {'.mpo'})  # Pillow opens an MPO as the JPEG at its beginning


def is_clutter(name: str) -> bool:
    """Whether a file or folder is hidden, or a file manager, an archiver or a notebook made it."""
    return name.startswith('.') or name.lower() in (*CLUTTER, *CLUTTER_FOLDERS)


def find_images(folder: str | Path) -> Found:
    """The image files below a folder, sorted by folder and then by name.

    Links are followed, except a link back to a folder that the link lies in. Only regular files count.
    """
    found = Found()
    for place, name, entry in sorted(
        _walk(str(folder), (os.path.realpath(folder),), found), key=lambda item: item[:2]
    ):
        path = os.path.join(place, name)
        suffix = os.path.splitext(name)[1].lower()
        if not _is_regular(entry):
            found.leave_out('broken link, pipe or device', path)
        elif suffix in extensions():
            found.images.append(path)
        elif suffix in EXTRA:
            found.leave_out(f'{suffix}, which needs `pip install "vision-efficient-tuning[heic]"`', path)
        elif suffix in PICTURES:
            found.leave_out(f'{suffix}, which the installed Pillow does not read', path)
        else:
            found.leave_out(f'{suffix or "file without an ending"}, which is no image', path)
    return found


def warn_of_left_out(found: Found, name: str) -> None:
    """Gives a DataWarning if files were left out."""
    if found.left_out:
        warnings.warn(
            DataWarning(f'{name}: {len(found.images):,} images are taken; left out: {found.says()}.'),
            stacklevel=2,
        )


def _walk(folder: str, above: tuple[str, ...], found: Found) -> Iterator[tuple[str, str, os.DirEntry]]:
    """The files below a folder, without clutter. above: the real paths of this folder and its parent
    folders.
    """
    with os.scandir(folder) as entries:
        listed = [entry for entry in entries if not is_clutter(entry.name)]
    for entry in listed:
        if not entry.is_dir():
            yield folder, entry.name, entry
            continue
        real = os.path.realpath(entry.path)
        if entry.is_symlink() and any(_is_below(path, real) for path in above):
            found.leave_out('link back to a folder that it lies in', entry.path)
        else:
            yield from _walk(entry.path, (*above, real), found)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_regular(entry: os.DirEntry) -> bool:
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:  # a link to nothing
        return False


def printable(path: str) -> str:
    """A path as text for any terminal or file. Bytes that are no UTF-8 are escaped."""
    return path.encode('utf-8', 'backslashreplace').decode()
