"""Stanford Cars."""

from pathlib import Path

from torchvision import datasets

from vet.datasets.base import Sample
from vet.datasets.published import PublishedDataset
from vet.registry import DATASETS


@DATASETS.register_module()
class StanfordCars(PublishedDataset):
    """Stanford Cars: 196 classes (make, model, year), 8,144 train and 8,041 test images.

    Krause et al. 2013. The web page, https://ai.stanford.edu/~jkrause/cars/car_dataset.html, is gone.
    torchvision reads the files.
    """

    folder = 'stanford_cars'
    layout = (
        'stanford_cars/ with cars_train/00001.jpg …, cars_test/00001.jpg …, devkit/cars_meta.mat, '
        'devkit/cars_train_annos.mat and cars_test_annos_withlabels.mat'
    )
    needs = (
        'cars_train',
        'cars_test',
        'devkit/cars_meta.mat',
        'devkit/cars_train_annos.mat',
        'cars_test_annos_withlabels.mat',
    )
    by_hand = (
        'the original download is gone: take a copy, such as those on Kaggle ("Stanford Cars Dataset"), and '
        'arrange it in the data root like that'
    )

    def read(self, root: Path, split: str) -> tuple[list[str], list[Sample]]:
        reader = datasets.StanfordCars(root, split, loader=str)  # this loader gives the file's name
        return reader.classes, [reader[index] for index in range(len(reader))]
