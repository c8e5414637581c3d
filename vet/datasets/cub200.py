"""Caltech-UCSD Birds-200-2011."""

from pathlib import Path

from vet.datasets.archives import Download
from vet.datasets.base import Sample
from vet.datasets.bird_lists import read_bird_lists
from vet.datasets.published import PublishedDataset
from vet.registry import DATASETS


@DATASETS.register_module(name=['CUB200', 'CUB', 'CUB-200-2011'])
class CUB200(PublishedDataset):
    """CUB-200-2011: 200 bird species, 5,994 train and 5,794 test images.

    Wah et al. 2011, https://www.vision.caltech.edu/datasets/cub_200_2011/. The class names are those of
    classes.txt, without their numbers: 'Black_footed_Albatross'.
    """

    folder = 'CUB_200_2011'
    layout = (
        'CUB_200_2011/ with images/001.Black_footed_Albatross/….jpg …, classes.txt, images.txt, '
        'image_class_labels.txt and train_test_split.txt'
    )
    needs = ('images', 'classes.txt', 'images.txt', 'image_class_labels.txt', 'train_test_split.txt')
    downloads = (
        Download(
            'https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz',
            'md5:97eceeb196236b17998738112f37df78',
        ),
    )

    def read(self, root: Path, split: str) -> tuple[list[str], list[Sample]]:
        names, samples = read_bird_lists(root / self.folder, split)
        return [name.split('.', 1)[-1] for name in names], samples
