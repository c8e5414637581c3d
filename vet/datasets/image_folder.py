"""A folder of class folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vet.datasets.base import ImageDataset, resolve_split
from vet.datasets.class_names import check_writable, to_nfc, warn_of_likes
from vet.datasets.image_files import Found, extensions, find_images, is_clutter, warn_of_left_out
from vet.datasets.label_map import class_numbers
from vet.errors import DataError, UserError
from vet.registry import DATASETS

SPLITS = ('train', 'val', 'test')
OTHER_NAMES = {
    'valid': 'val',
    'validation': 'val',
    'dev': 'val',
    'training': 'train',
    'testing': 'test',
    'eval': 'test',
}


@DATASETS.register_module()
class ImageFolder(ImageDataset):
    """Images in path/<class>/, or, with a split, in path/<split>/<class>/.

    path: absolute or relative to `root`.
    split: 'train', 'val', 'test' (also 'eval') or 'train+val', if `path` has such folders. None, if `path`
        has no such folders. The folders 'valid', 'validation' and 'dev' are the split 'val'; 'training' is
        'train'; 'testing' and 'eval' are 'test'.
    classes: without a classifier in the backbone: the folders' names in the order of their labels, or {name:
        number}. If the backbone keeps its classifier: all class names of its output, or 'imagenet-1k', or
        'imagenet-1k+background' (1,001, background first).
    label_map: for a backbone that keeps its classifier: the place of a folder in the output, such as
        dict(jellyfish=107), if the folder's name is not among the classes.
    The classes are the folders, sorted by name. Images may lie deeper. A file counts if the installed Pillow
    decodes the format of its extension. Hidden files and folders, and those of file managers and notebooks,
    are left out. A warning names and counts other files that are left out.
    DataError if a folder is missing, a class folder holds no image, a split has other classes than 'train',
    or a class name is not UTF-8.
    """

    def __init__(
        self,
        root: str | Path = 'data',
        split: str | None = None,
        path: str | Path = '',
        classes: str | Sequence[str] | Mapping[str, int] | None = None,
        label_map: Mapping[str, int] | None = None,
    ):
        home = Path(root).expanduser() / Path(path).expanduser()
        if not home.is_dir():
            raise DataError(
                f'there is no image folder {str(home)!r}. Give its `path`, absolute or relative to the '
                f'data root {str(root)!r} (--data-root DIR or VET_DATA_ROOT).'
            )
        splits = _splits(home)
        folders = _split_folders(home, splits, split)
        names = list(_subfolders(splits['train'] if split and 'train' in splits else folders[0]))
        if classes is None:
            warn_of_likes(names)
        every, labels = class_numbers(names, classes, label_map)
        self.label_map = labels
        found = Found()
        samples = [sample for folder in folders for sample in _read(folder, labels, found)]
        warn_of_left_out(found, f'{type(self).__name__} {str(home)!r}')
        super().__init__(every, samples)


def _splits(home: Path) -> dict[str, Path]:
    """The folders that are splits, with the names 'train', 'val' and 'test'."""
    found: dict[str, Path] = {}
    for folder in _subfolders(home).values():
        name = OTHER_NAMES.get(folder.name.lower(), folder.name.lower())
        if name not in SPLITS:
            continue
        if name in found:
            raise UserError(
                f'{str(home)!r} has the folders {found[name].name!r} and {folder.name!r}, which both are the '
                f'split {name!r}. Rename one of them, or put them together.'
            )
        found[name] = folder
    return {name: found[name] for name in SPLITS if name in found}


def _split_folders(home: Path, splits: dict[str, Path], split: str | None) -> list[Path]:
    if split is None:
        others = set(_subfolders(home)) - {folder.name for folder in splits.values()}
        if splits and (not others or len(splits) > 1 or any(map(_holds_classes, splits.values()))):
            beside = f', and beside them {", ".join(sorted(others)[:5])}' if others else ''
            raise UserError(
                f'{str(home)!r} has the split folders '
                f'{", ".join(folder.name for folder in splits.values())}{beside}: choose one by split=…, '
                f'such as split="{next(iter(splits))}".'
            )
        return [home]
    if not splits:
        raise UserError(
            f'{str(home)!r} has no split folders (train, val, test); given: split={split!r}. Leave split '
            f'out to take all images, or make split folders.'
        )
    asked = OTHER_NAMES.get(split, split)
    return [splits[name] for name in resolve_split(asked, list(splits), f'the image folder {str(home)!r}')]


def _holds_classes(folder: Path) -> bool:
    """Whether a folder holds folders, and no image beside them."""
    return bool(_subfolders(folder)) and not _loose(folder)


def _loose(folder: Path) -> list[str]:
    """The images that lie in a folder itself, and in no folder below."""
    return [
        str(path)
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in extensions() and path.is_file() and not is_clutter(path.name)
    ]


def _subfolders(folder: Path) -> dict[str, Path]:
    """The folders in a folder by their composed names, sorted.

    UserError for a name that is not UTF-8, or that is there twice.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or is_clutter(path.name):
            continue
        check_writable([path.name])
        if (name := to_nfc(path.name)) in found:
            raise UserError(
                f'{str(folder)!r} has two folders {name!r}, which differ only in how their letters are '
                'stored (Unicode NFC and NFD). Put them together.'
            )
        found[name] = path
    return dict(sorted(found.items()))


def _read(folder: Path, labels: dict[str, int], found: Found) -> list[tuple[str, int]]:
    """The samples of a folder of class folders. Adds the files of the folder to `found`."""
    folders = _subfolders(folder)
    if list(folders) != list(labels):
        raise DataError(
            f'{str(folder)!r} has other class folders than the training images: too many: '
            f'{sorted(set(folders) - set(labels))}, missing: {sorted(set(labels) - set(folders))}.'
        )
    if not labels:
        loose = find_images(folder).images
        also = f' {len(loose):,} images lie in it without a class, such as {loose[0]!r}.' if loose else ''
        raise DataError(
            f'{str(folder)!r} has no class folders; images lie in {str(folder / "<class>")}/.{also}'
        )
    samples: list[tuple[str, int]] = []
    for name, path in folders.items():
        in_class = find_images(path)
        if not in_class.images:
            left_out = f' Left out: {in_class.says()}.' if in_class.left_out else ''
            raise DataError(
                f'the class folder {str(path)!r} holds no image that Pillow reads.{left_out} Put images in '
                'the folder, or remove it.'
            )
        samples += [(image, labels[name]) for image in in_class.images]
        found.add(in_class)
    for image in _loose(folder):
        found.leave_out('image beside the class folders, which has no class', image)
    return samples
