"""Datasets with a published folder layout and official splits. vet downloads them, if their makers allow
it.
"""

import os
import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from vet.datasets.archives import (
    Download,
    fetch_whole,
    is_inside,
    only_plain_by_default,
    provide,
    unpack_whole,
)
from vet.datasets.base import ImageDataset, Sample, require_files, resolve_split
from vet.errors import DataError
from vet.offline import NETWORK_TIMEOUT_SECONDS, silence_bounded
from vet.torch_private import torchvision_downloads_by


class PublishedDataset(ImageDataset):
    """A dataset in `root`/`folder`, in the layout that its makers published.

    root: the data root, which holds one folder per dataset.
    split: 'train' or 'test' (also 'eval'). Flowers102 also has 'val', and 'train+val' for both.
    download: True: vet downloads missing data into a folder beside the final place, reads the data
        completely, and moves the folder into place by one rename. So an interrupted download leaves no
        incomplete folder. False: missing data are an error, which says how to get the data.
    vet never changes data that are there.
    DataError if data are missing, incomplete or not the published data. Without a network, the error comes
    within seconds.
    """

    splits: ClassVar[tuple[str, ...]] = ('train', 'test')
    folder: ClassVar[str]
    layout: ClassVar[str]  # of the data root, for people
    needs: ClassVar[tuple[str, ...]]  # the files and folders in `folder` that every split needs
    downloads: ClassVar[tuple[Download, ...]] = ()  # empty: no download is possible
    unpacked_in: ClassVar[str] = ''  # the folder of the data root for the downloads; '': the root itself
    by_hand: ClassVar[str] = ''  # how a person gets the data, if no download is possible

    def __init__(self, root: str | Path = 'data', split: str = 'train', download: bool = True):
        parts = resolve_split(split, self.splits, type(self).__name__)
        root = Path(root).expanduser()
        self._provide(root, download)
        tables = [self._checked(root, name) for name in parts]
        super().__init__(tables[0][0], [sample for _, samples in tables for sample in samples])

    @abstractmethod
    def read(self, root: Path, split: str) -> tuple[list[str], list[Sample]]:
        """Class names and samples of one official split."""

    def fetch(self, root: Path) -> None:
        """Downloads the data to `root`/`folder`, below a temporary root.

        OSError or DataError if that fails.
        """
        for download in self.downloads:
            provide(download, root / self.unpacked_in)

    def _checked(self, root: Path, split: str) -> tuple[list[str], list[Sample]]:
        try:
            classes, samples = self.read(root, split)
        except Exception as error:  # a broken index file can make its reader raise any error
            raise DataError(
                f'{type(self).__name__}: {str(root / self.folder)!r} cannot be read: {error!r}. A file in '
                f'it is not the published one; expected: {self.layout}. Move the folder away and provide '
                f'it again.'
            ) from error
        require_inside(samples, root / self.folder, type(self).__name__)
        return classes, require_files(samples, type(self).__name__)

    def _missing(self, root: Path) -> Path | None:
        paths = (root / self.folder / name for name in self.needs)
        return next((path for path in paths if not path.exists()), None)

    def _provide(self, root: Path, download: bool) -> None:
        missing = self._missing(root)
        if missing is None:
            return
        reason = ''
        cause = None
        if _is_filled(root / self.folder):
            reason = (
                f' (the rest of {str(root / self.folder)!r} is left as it is: complete it, or move it away)'
            )
        elif self.downloads and download:
            try:
                return self._download(root)
            except Exception as error:  # of the network, the archive or the disk: all become one message
                if self._missing(root) is None:  # another process has downloaded the data meanwhile
                    return
                reason = (
                    f', and the download from {self.downloads[0].url} failed: {error or type(error).__name__}'
                )
                cause = error
        second = self.by_hand or (
            f'run once with a network, so that it is downloaded from {self.downloads[0].url}'
        )
        raise DataError(
            f'{type(self).__name__}: {str(missing)!r} is missing{reason}. '
            + how_to_provide(self.layout, second)
        ) from cause

    def _download(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix='.download-') as name:
            staging = Path(name)
            self.fetch(staging)
            for split in self.splits:
                self._checked(staging, split)
            (staging / self.folder).rename(root / self.folder)


def how_to_provide(layout: str, second: str) -> str:
    """The sentence that says how to provide data."""
    return (
        f'There are two ways to provide it: (1) --data-root DIR, or the environment variable VET_DATA_ROOT, '
        f'pointing at a folder that holds {layout}; (2) {second}.'
    )


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def require_inside(samples: Sequence[Sample], folder: Path, name: str) -> None:
    """DataError if a sample's file is not below `folder`. A list of images is data from a stranger."""
    for source, _ in samples:
        if isinstance(source, str | os.PathLike) and not is_inside(os.path.relpath(source, folder)):
            raise DataError(
                f'{name} lists the image {os.fspath(source)!r}, outside {str(folder)!r}; its list is not the '
                f'published one. Provide it again.'
            )


@contextmanager
def torchvision_bounds() -> Iterator[None]:
    """Limits torchvision's own downloads: the wait for a server, redirects, and the contents of an archive.

    A file or an unpacked folder appears when it is whole. So a download that was broken off can begin again.
    """
    with (
        silence_bounded(NETWORK_TIMEOUT_SECONDS),
        only_plain_by_default(),
        torchvision_downloads_by(fetch_whole, unpack_whole),
    ):
        yield
