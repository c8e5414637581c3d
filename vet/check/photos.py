"""Reads photos with their classes: a folder of class folders, split folders, a CSV table, or an archive."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vet.datasets.archives import unpack
from vet.datasets.class_names import check_writable, to_nfc
from vet.datasets.csv import CSV
from vet.datasets.image_files import Found, find_images, is_clutter
from vet.datasets.image_folder import OTHER_NAMES, SPLITS
from vet.errors import DataError, UserError

TABLES = ('.csv', '.tsv')
ARCHIVES = ('.zip', '.tar', '.tgz', '.gz', '.bz2', '.xz')
VIDEOS = ('.mp4', '.mov', '.avi', '.mkv', '.webm', '.m4v')
MOST_CLASSES = 5_000


@dataclass(frozen=True)
class Photo:
    """An image file, its class, and its split, if the user has divided the photos: train, val or test."""

    path: str
    label: str
    split: str | None = None


@dataclass
class Photos:
    """All photos, and the files that are left out: {reason: paths}."""

    photos: list[Photo]
    left_out: dict[str, list[str]] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        return sorted({photo.label for photo in self.photos})

    @property
    def counts(self) -> Counter[str]:
        """{class: number of photos}"""
        return Counter(photo.label for photo in self.photos)

    def leave_out(self, reasons: dict[str, str]) -> None:
        """Leaves photos out. reasons: {path: reason}"""
        for photo in self.photos:
            if photo.path in reasons:
                self.left_out.setdefault(reasons[photo.path], []).append(photo.path)
        self.photos = [photo for photo in self.photos if photo.path not in reasons]

    def says(self) -> str:
        """'1,204 images in 7 classes. 31 files left out: 24 .heic, …; 5 broken.'"""
        classes = len(self.classes)
        text = f'{len(self.photos):,} images in {classes:,} class{"es" * (classes != 1)}.'
        if not self.left_out:
            return text
        reasons = sorted(self.left_out.items(), key=lambda item: -len(item[1]))
        total = sum(len(paths) for _, paths in reasons)
        parts = [f'{len(paths):,} {reason} (such as {Path(paths[0]).name})' for reason, paths in reasons]
        return f'{text} {total:,} file{"s" * (total != 1)} left out: {"; ".join(parts)}.'


def read_photos(source: Path, unpacked: Path) -> Photos:
    """The photos of a folder, a table or an archive. An archive is unpacked into the folder `unpacked`.

    UserError says what `source` lacks.
    """
    if not source.exists():
        raise UserError(f'there is nothing at {str(source)!r}. Give a folder of photos, a CSV or an archive.')
    if source.is_file():
        suffix = source.suffix.lower()
        if suffix in TABLES:
            photos = _of_table(source)
        elif is_archive(source):
            unpack(source, unpacked)
            photos = _of_unpacked(_top(unpacked), source)
        else:
            raise UserError(
                f'{str(source)!r} is a file. Give the folder that holds the photos, with one folder for each '
                'class; or a CSV with the columns path,label; or a zip or tar file of such a folder.'
            )
    else:
        photos = _of_folder(source, source)
    _refuse_few(photos, source)
    return photos


def _of_unpacked(folder: Path, source: Path) -> Photos:
    """The photos of an archive: those of its one table, or those of its class folders."""
    tables = [
        entry for entry in folder.iterdir() if entry.suffix.lower() in TABLES and not is_clutter(entry.name)
    ]
    if len(tables) == 1 and len(_folders(folder)) < 2:
        return _of_table(tables[0])
    return _of_folder(folder, source)


def is_archive(source: Path) -> bool:
    return source.is_file() and source.suffix.lower() in ARCHIVES


def _refuse_few(photos: Photos, source: Path) -> None:
    classes = photos.classes
    if len(classes) == 1:
        inner = _top(source) if source.is_dir() else source
        raise UserError(
            f'{str(source)!r} has one class, {classes[0]!r}. A model learns to tell classes apart: '
            + (
                f'give {str(inner)!r}, if its folders are the classes.'
                if inner != source
                else 'add the photos of another class.'
            )
        )
    if len(classes) > MOST_CLASSES:
        raise UserError(
            f'{str(source)!r} has {len(classes):,} classes. Of photos without a config, vet takes at most '
            f'{MOST_CLASSES:,} classes. If each folder is one photo series, put the folders of one class '
            'together. Otherwise write a config, and call vet train.'
        )


def _of_table(path: Path) -> Photos:
    table = path.absolute()
    parts = {split: CSV(file=table, split=split, separator=None) for split in _splits_of_table(table)}
    found = [
        Photo(os.fspath(source), data.classes[label], split)
        for split, data in parts.items()
        for source, label in data.samples
    ]
    return Photos(found)


def _splits_of_table(path: Path) -> list[str | None]:
    """The splits that the table names. [None]: the table has no split."""
    named: list[str | None] = []
    for split in SPLITS:
        try:
            CSV(file=path, split=split, separator=None)
        except DataError:
            raise
        except UserError:
            continue
        named.append(split)
    return named or [None]


def _top(folder: Path) -> Path:
    """The folder of the class folders: archives often hold one folder that holds all."""
    inside = [entry for entry in folder.iterdir() if not is_clutter(entry.name)]
    return _top(inside[0]) if len(inside) == 1 and inside[0].is_dir() and _folders(inside[0]) else folder


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not is_clutter(entry.name))


def _of_folder(folder: Path, source: Path) -> Photos:
    folders = _folders(folder)
    splits = {path: OTHER_NAMES.get(path.name.lower(), path.name.lower()) for path in folders}
    are_splits = len(folders) > 1 and set(splits.values()) <= set(SPLITS)
    some = sorted(path.name for path, name in splits.items() if name in SPLITS)
    if not are_splits and (len(some) > 1 or (some and _share_classes(folders))):
        others = sorted(path.name for path in folders if path.name not in some)
        raise UserError(
            f'{str(source)!r} has the split folders {", ".join(some)}, and other folders: '
            f'{", ".join(others[:5])}. Name split folders train, val and test, and move other folders away.'
        )
    found = Found()
    photos = []
    for path in folders:
        classes = _folders(path) if are_splits else [path]
        for class_folder in classes:
            check_writable([class_folder.name])
            images = find_images(class_folder)
            label = to_nfc(class_folder.name)
            split = splits[path] if are_splits else None
            photos += [Photo(image, label, split) for image in images.images]
            found.add(images)
    if not photos:
        _refuse_empty(folder, source)
    return Photos(photos, found.left_out)


def _share_classes(folders: list[Path]) -> bool:
    """Whether all folders hold folders of one name, as split folders do."""
    shared = {path.name for path in _folders(folders[0])}
    for folder in folders[1:]:
        shared &= {path.name for path in _folders(folder)}
    return len(folders) > 1 and bool(shared)


def _refuse_empty(folder: Path, source: Path) -> None:
    loose = find_images(folder)
    videos = list(_videos(loose))
    if loose.images:
        raise UserError(
            f'{str(source)!r} has {len(loose.images):,} images, but no class folders. Put the photos of '
            f'each class into a folder with the name of the class: {str(folder / "CLASS" / "photo.jpg")!r}.'
        )
    if videos:
        raise UserError(
            f'{str(source)!r} has {len(videos):,} videos, such as {videos[0]!r}, and no photos. vet reads '
            'photos: save frames of the videos as photos.'
        )
    more = f' Left out: {loose.says()}.' if loose.left_out else ''
    raise UserError(f'{str(source)!r} has no photos. Give a folder with one folder for each class.{more}')


def _videos(found: Found) -> Iterator[str]:
    for reason, paths in found.left_out.items():
        if reason.startswith(VIDEOS):
            yield from paths
