"""A folder of class folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from vet.datasets.base import ImageDataset, resolve_split
from vet.datasets.label_map import numbered
from vet.errors import DataError, UserError
from vet.registry import DATASETS

SPLITS = ('train', 'val', 'test')


@DATASETS.register_module()
class ImageFolder(ImageDataset):
    """Images in path/<class>/, or, with a split, in path/<split>/<class>/; `path` is absolute or relative to `root`.

    split: 'train', 'val', 'test' (also 'eval') or 'train+val', where `path` has such folders; None where it has none.
    Classes are the folders, sorted by name; images may lie deeper; names that begin with a dot are left out. Raises
    DataError if a folder is missing, a class folder holds no image, or a split has other classes than 'train'.

    For a backbone that keeps its classifier: classes, all class names of its output, or 'imagenet-1k', or
    'imagenet-1k+background' (1,001, background first); label_map, the place there of each folder, such as
    dict(jellyfish=107), where its name is not among them.
    """

    def __init__(self, root: str | Path = 'data', split: str | None = None, path: str | Path = '',
                 classes: str | Sequence[str] | None = None, label_map: Mapping[str, int] | None = None):
        home = Path(root).expanduser() / Path(path).expanduser()
        if not home.is_dir():
            raise DataError(f'there is no image folder {str(home)!r}. Give its `path`, absolute or relative to the '
                            f'data root {str(root)!r} (--data-root DIR or VET_DATA_ROOT).')
        folders = _split_folders(home, split)
        names = _subfolders(home / 'train' if split and (home / 'train').is_dir() else folders[0])
        every, labels = numbered(names, classes, label_map)
        self.label_map = labels
        super().__init__(every, [sample for folder in folders for sample in _read(folder, labels)])


def _split_folders(home: Path, split: str | None) -> list[Path]:
    splits = [name for name in SPLITS if (home / name).is_dir()]
    if split is None:
        if splits and set(_subfolders(home)) <= set(SPLITS):
            raise UserError(f'{str(home)!r} has the split folders {", ".join(splits)}: say which by split=….')
        return [home]
    if not splits:
        raise UserError(f'{str(home)!r} has no split folders (train, val, test); given: split={split!r}. Leave split '
                        f'out to take all of it, or make split folders.')
    return [home / name for name in resolve_split(split, splits, f'the image folder {str(home)!r}')]


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith('.'))


def _read(folder: Path, labels: dict[str, int]) -> list[tuple[str, int]]:
    found, classes = _subfolders(folder), list(labels)
    if found != classes:
        raise DataError(f'{str(folder)!r} has other class folders than the training images: too many: '
                        f'{sorted(set(found) - set(classes))}, missing: {sorted(set(classes) - set(found))}.')
    if not classes:
        raise DataError(f'{str(folder)!r} has no class folders; images lie in {str(folder / "<class>")}/.')
    samples = make_dataset(folder, labels, is_valid_file=_is_image, allow_empty=True)
    taken = {label for _, label in samples}
    empty = [name for name, label in labels.items() if label not in taken]
    if empty:
        raise DataError(f'the class folder {str(folder / empty[0])!r} holds no image '
                        f'({", ".join(IMG_EXTENSIONS)}). Put images in it, or remove the folder.')
    return samples


def _is_image(path: str) -> bool:
    name = Path(path).name.lower()
    return name.endswith(IMG_EXTENSIONS) and not name.startswith('.')
