"""NABirds."""

from pathlib import Path

from vet.datasets.base import Sample
from vet.datasets.bird_lists import read_bird_lists
from vet.datasets.published import PublishedDataset
from vet.registry import DATASETS


@DATASETS.register_module()
class NABirds(PublishedDataset):
    """NABirds: 555 visual categories of North American birds, 23,929 train and 24,633 test images.

    Van Horn et al. 2015, https://dl.allaboutbirds.org/nabirds. Labels 0 … 554 in the order of the class ids.
    """

    folder = 'nabirds'
    layout = (
        'nabirds/ with images/0817/….jpg …, classes.txt, images.txt, image_class_labels.txt and '
        'train_test_split.txt'
    )
    needs = ('images', 'classes.txt', 'images.txt', 'image_class_labels.txt', 'train_test_split.txt')
    by_hand = (
        'a form gives the data out: fill in the form at https://dl.allaboutbirds.org/nabirds and unpack the '
        'archive in the data root'
    )

    def read(self, root: Path, split: str) -> tuple[list[str], list[Sample]]:
        return read_bird_lists(root / self.folder, split)
