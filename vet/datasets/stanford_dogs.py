"""Stanford Dogs."""

from pathlib import Path

from scipy.io import loadmat

from vet.datasets.archives import Download
from vet.datasets.base import Sample
from vet.datasets.published import PublishedDataset
from vet.registry import DATASETS


@DATASETS.register_module()
class StanfordDogs(PublishedDataset):
    """Stanford Dogs: 120 breeds, 12,000 train and 8,580 test images (of ImageNet's training set).

    Khosla et al. 2011, http://vision.stanford.edu/aditya86/ImageNetDogs/. A class name is the folder's name
    without its WordNet id: 'Shih-Tzu'.
    """

    folder = 'stanford_dogs'
    layout = (
        'stanford_dogs/ with Images/n02085620-Chihuahua/n02085620_5927.jpg …, train_list.mat and '
        'test_list.mat'
    )
    needs = ('Images', 'train_list.mat', 'test_list.mat')
    unpacked_in = folder
    downloads = (  # the hashes of TensorFlow Datasets, url_checksums/stanford_dogs.txt
        Download(
            'https://vision.stanford.edu/aditya86/ImageNetDogs/images.tar',
            'sha256:a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58',
        ),
        Download(
            'https://vision.stanford.edu/aditya86/ImageNetDogs/lists.tar',
            'sha256:34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c',
        ),
    )

    def read(self, root: Path, split: str) -> tuple[list[str], list[Sample]]:
        table = loadmat(root / self.folder / f'{split}_list.mat', squeeze_me=True)
        files, labels = table['file_list'].tolist(), (table['labels'] - 1).tolist()
        breeds = {
            label: file.split('/')[0].split('-', 1)[1] for file, label in zip(files, labels, strict=True)
        }
        images = root / self.folder / 'Images'
        return (
            [breeds[label] for label in range(len(breeds))],
            [(images / file, label) for file, label in zip(files, labels, strict=True)],
        )
