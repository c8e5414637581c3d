"""Datasets of torchvision that have a mask for each image."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from torchvision import datasets

from vet.allowed import OneOf
from vet.datasets.masks import MaskDataset, Values
from vet.datasets.published import how_to_provide, require_inside, torchvision_bounds
from vet.datasets.torchvision_sets import VOC
from vet.errors import DataError, UnknownNameError
from vet.registry import DATASETS

SPELLINGS = {'train+val': 'trainval', 'eval': 'test'}
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Source:
    """A dataset of torchvision. splits: torchvision's words. pairs: (root, split, download) -> its files."""

    values: Values
    splits: tuple[str, ...]
    pairs: Callable[[Path, str, bool], Pairs]


def _voc(root: Path, split: str, download: bool) -> Pairs:
    data: Any = datasets.VOCSegmentation(root, '2012', split, download)
    return list(zip(data.images, data.masks, strict=True))


def _pets(root: Path, split: str, download: bool) -> Pairs:
    datasets.OxfordIIITPet(root, split, download=download)  # looks whether the files are there
    home = root / 'oxford-iiit-pet'
    lines = (home / 'annotations' / f'{split}.txt').read_text().splitlines()
    names = [line.split()[0] for line in lines]
    return [
        (str(home / 'images' / f'{name}.jpg'), str(home / 'annotations' / 'trimaps' / f'{name}.png'))
        for name in names
    ]


SOURCES = {
    'VOCSegmentation': Source(Values(VOC), ('train', 'val', 'trainval'), _voc),
    'OxfordIIITPet': Source(Values(dict(pet=1, background=2), [3]), ('trainval', 'test'), _pets),
}


@DATASETS.register_module(name='torchvision-masks')
class TorchvisionMasks(MaskDataset):
    """The masks of torchvision's VOCSegmentation (2012, 21 classes) or OxfordIIITPet (pet and background).

    name: 'VOCSegmentation' or 'OxfordIIITPet'.
    root: holds torchvision's layout.
    split: of VOCSegmentation: 'train', 'val' or 'train+val'; of OxfordIIITPet: 'train+val' or 'test'.
    download: True lets torchvision download missing data.
    Pixels of borders have no class. DataError if data are missing.
    """

    def __init__(
        self,
        root: str | Path = 'data',
        split: str = 'train',
        *,
        name: Annotated[str, OneOf(tuple(SOURCES))],
        download: bool = True,
    ):
        source = SOURCES[name]
        word = SPELLINGS.get(split, split)
        if word not in source.splits:
            allowed = [spelled.replace('trainval', 'train+val') for spelled in source.splits]
            raise UnknownNameError(f'split of torchvision.datasets.{name}', split, allowed)
        try:
            with torchvision_bounds():
                pairs = source.pairs(Path(root).expanduser(), word, download)
        except (OSError, RuntimeError, DataError) as error:
            raise DataError(
                f'torchvision.datasets.{name} cannot be read from {str(root)!r}: {error}. '
                + how_to_provide('it in the layout of torchvision', 'run once with a network')
            ) from error
        for sources in (pairs, [(mask, image) for image, mask in pairs]):
            require_inside(sources, Path(root).expanduser(), f'torchvision.datasets.{name}')
        super().__init__(source.values, pairs)
