"""A folder of class folders."""

from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from vet.datasets.base import ImageDataset, resolve_split
from vet.errors import DataError, UserError
from vet.registry import DATASETS

SPLITS = ('train', 'val', 'test')


@DATASETS.register_module()
class ImageFolder(ImageDataset):
    """Images in path/<class>/, or, with a split, in path/<split>/<class>/; `path` is absolute or relative to `root`.

    split: 'train', 'val', 'test' (also 'eval') or 'train+val', where `path` has such folders; None where it has none.
    Classes are the folders, sorted by name; images may lie deeper; names that begin with a dot are left out. Raises
    DataError if a folder is missing, a class folder holds no image, or a split has other classes than 'train'.
    """

    def __init__(self, root: str | Path = 'data', split: str | None = None, path: str | Path = ''):
        home = Path(root).expanduser() / Path(path).expanduser()
        if not home.is_dir():
            raise DataError(f'there is no image folder {str(home)!r}. Give its `path`, absolute or relative to the '
                            f'data root {str(root)!r} (--data-root DIR or VET_DATA_ROOT).')
        folders = _split_folders(home, split)
        classes = _subfolders(home / 'train' if split and (home / 'train').is_dir() else folders[0])
        super().__init__(classes, [sample for folder in folders for sample in _read(folder, classes)])


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


def _read(folder: Path, classes: list[str]) -> list[tuple[str, int]]:
    found = _subfolders(folder)
    if found != classes:
        raise DataError(f'{str(folder)!r} has other class folders than the training images: too many: '
                        f'{sorted(set(found) - set(classes))}, missing: {sorted(set(classes) - set(found))}.')
    if not classes:
        raise DataError(f'{str(folder)!r} has no class folders; images lie in {str(folder / "<class>")}/.')
    labels = {name: label for label, name in enumerate(classes)}
    samples = make_dataset(folder, labels, is_valid_file=_is_image, allow_empty=True)
    empty = set(range(len(classes))) - {label for _, label in samples}
    if empty:
        raise DataError(f'the class folder {str(folder / classes[min(empty)])!r} holds no image '
                        f'({", ".join(IMG_EXTENSIONS)}). Put images in it, or remove the folder.')
    return samples


def _is_image(path: str) -> bool:
    name = Path(path).name.lower()
    return name.endswith(IMG_EXTENSIONS) and not name.startswith('.')
