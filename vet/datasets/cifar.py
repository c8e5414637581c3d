"""CIFAR-10 and CIFAR-100."""

from pathlib import Path
from typing import ClassVar

from torchvision import datasets

from vet.datasets.archives import Download
from vet.datasets.base import Sample
from vet.datasets.published import PublishedDataset
from vet.registry import DATASETS


@DATASETS.register_module()
class CIFAR10(PublishedDataset):
    """CIFAR-10: 10 classes, 50,000 train and 10,000 test images of 32 x 32.

    Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html. torchvision reads the files, and checks the
    md5 of each. The source of a sample is the image itself, uint8 (32, 32, 3).
    """

    reader: ClassVar = datasets.CIFAR10
    folder = 'cifar-10-batches-py'
    layout = 'cifar-10-batches-py/ with data_batch_1 … data_batch_5, test_batch and batches.meta'
    needs = (*(f'data_batch_{number}' for number in range(1, 6)), 'test_batch', 'batches.meta')
    downloads = (Download(datasets.CIFAR10.url, f'md5:{datasets.CIFAR10.tgz_md5}'),)

    def read(self, root: Path, split: str) -> tuple[list[str], list[Sample]]:
        data = self.reader(root, train=split == 'train')
        return data.classes, list(zip(data.data, data.targets, strict=True))


@DATASETS.register_module()
class CIFAR100(CIFAR10):
    """CIFAR-100: 100 (fine) classes, 50,000 train and 10,000 test images of 32 x 32. See CIFAR10."""

    reader = datasets.CIFAR100
    folder = 'cifar-100-python'
    layout = 'cifar-100-python/ with train, test and meta'
    needs = ('train', 'test', 'meta')
    downloads = (Download(datasets.CIFAR100.url, f'md5:{datasets.CIFAR100.tgz_md5}'),)
