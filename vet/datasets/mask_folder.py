"""Folders of images and masks, in which an image and its mask have the same name without the ending."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vet.datasets.base import resolve_split
from vet.datasets.image_files import find_images, warn_of_left_out
from vet.datasets.masks import MaskDataset, Pixel, Values
from vet.errors import DataError, UserError
from vet.registry import DATASETS


@DATASETS.register_module()
class MaskFolder(MaskDataset):
    """Images in path/<split>/images/ and masks in path/<split>/masks/: a.jpg and a.png are a pair.

    path: absolute or relative to `root`.
    split: the name of a folder in `path`, such as 'train', or 'train+val'. The folders may also be
        path/images/<split>/ and path/masks/<split>/. None: path/images/ and path/masks/.
    classes: the class names in the order of the numbers in the masks, from 0; or {name: number}; or
        {name: (red, green, blue)} for masks with colours; or the path of a text file with a name in each
        line, absolute or relative to `path`.
    ignore: the numbers, or the colours, of pixels without a class. The number 255 is always such a number.
    images, masks: the names of the folders.
    A mask is a PNG of the size of its image: gray, with a palette, or with a colour for each class.
    Images and masks may lie deeper in the folders, at equal places.
    DataError for a missing folder or mask, for a mask of another size, and for a number or a colour without
    a class.
    """

    def __init__(
        self,
        root: str | Path = 'data',
        split: str | None = None,
        path: str | Path = '',
        *,
        classes: Sequence[str] | Mapping[str, Pixel] | str,
        ignore: Sequence[Pixel] = (),
        images: str = 'images',
        masks: str = 'masks',
    ):
        home = Path(root).expanduser() / Path(path).expanduser()
        if not home.is_dir():
            raise DataError(
                f'there is no folder {str(home)!r}. Give its `path`, absolute or relative to the data root '
                f'{str(root)!r} (--data-root DIR or VET_DATA_ROOT).'
            )
        names = _names(home / classes) if isinstance(classes, str) else classes
        pairs = []
        for name in [None] if split is None else _splits(home, split, images):
            pairs += _pairs(_folder(home, name, images), _folder(home, name, masks))
        super().__init__(Values(names, ignore), pairs)


def _names(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f'the class names cannot be read from {str(file)!r}: {error}. Give a text file with a name in '
            'each line, or a list of names.'
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _splits(home: Path, split: str, images: str) -> list[str]:
    """The names of the folders that `split` asks for."""
    found = [path.name for path in sorted(home.iterdir()) if (path / images).is_dir()]
    if not found and (home / images).is_dir():
        found = [path.name for path in sorted((home / images).iterdir()) if path.is_dir()]
    if not found:
        raise DataError(
            f'{str(home)!r} has no folder {images!r} in a folder of a split, such as '
            f'{str(Path("train") / images)!r}. Give `path`, `split` and `images` as the folders are.'
        )
    return resolve_split(split, found, f'the folder {str(home)!r}')


def _folder(home: Path, split: str | None, name: str) -> Path:
    places = [home / name] if split is None else [home / split / name, home / name / split]
    for place in places:
        if place.is_dir():
            return place
    raise DataError(
        f'there is no folder {str(places[0])!r}. Make the folder, or give its name by images=… or masks=….'
    )


def _pairs(images: Path, masks: Path) -> list[tuple[str, str]]:
    """The images with their masks. DataError for an image without a mask, or with two."""
    found, inside = find_images(images), find_images(masks)
    warn_of_left_out(found, f'MaskFolder {str(images)!r}')
    by_stem: dict[str, str] = {}
    for path in inside.images:
        first = by_stem.setdefault(str(Path(path).relative_to(masks).with_suffix('')), path)
        if first != path:
            raise DataError(f'an image has two masks, {first!r} and {path!r}. Remove one.')
    pairs, missing = [], []
    for image in found.images:
        mask = by_stem.get(str(Path(image).relative_to(images).with_suffix('')))
        if mask is None:
            missing.append(image)
        else:
            pairs.append((image, mask))
    if missing:
        raise DataError(
            f'{len(missing):,} of {len(found.images):,} images in {str(images)!r} have no mask in '
            f'{str(masks)!r}, such as {missing[0]!r}. A mask has the name of its image, with the ending '
            '.png. Add the masks, or leave the images out.'
        )
    return pairs
