"""Oxford Flowers 102."""

from pathlib import Path

from torchvision import datasets

from vet.datasets.archives import Download
from vet.datasets.base import Sample
from vet.datasets.published import PublishedDataset
from vet.registry import DATASETS


@DATASETS.register_module(name=['Flowers102', 'OxfordFlowers'])
class Flowers102(PublishedDataset):
    """Oxford Flowers: 102 classes; official splits of 1,020 train, 1,020 val and 6,149 test images.

    Nilsback & Zisserman 2008, https://www.robots.ox.ac.uk/~vgg/data/flowers/102/. torchvision reads the
    files. It checks the md5 of imagelabels.mat and setid.mat, and knows the md5 of the images' archive.
    """

    splits = ('train', 'val', 'test')
    folder = 'flowers-102'
    layout = 'flowers-102/ with jpg/image_00001.jpg … image_08189.jpg, imagelabels.mat and setid.mat'
    needs = ('jpg', 'imagelabels.mat', 'setid.mat')
    unpacked_in = folder
    downloads = tuple(
        Download(f'https://www.robots.ox.ac.uk/~vgg/data/flowers/102/{name}', f'md5:{md5}')
        for name, md5 in (
            ('102flowers.tgz', '52808999861908f626f3c1f4e79d11fa'),
            ('imagelabels.mat', 'e0620be6f572b9609742df49c70aed4d'),
            ('setid.mat', 'a5357ecc9cb78c4bef273ce3793fc85c'),
        )
    )

    def read(self, root: Path, split: str) -> tuple[list[str], list[Sample]]:
        reader = datasets.Flowers102(root, split, loader=str)  # this loader gives the file's name
        return reader.classes, [reader[index] for index in range(len(reader))]
