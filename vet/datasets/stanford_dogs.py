"""Stanford Dogs."""

from pathlib import Path

from scipy.io import loadmat
from torchvision.datasets.utils import download_and_extract_archive

from vet.datasets.base import Sample
from vet.datasets.published import PublishedDataset
from vet.registry import DATASETS


@DATASETS.register_module()
class StanfordDogs(PublishedDataset):
    """Stanford Dogs: 120 breeds, 12,000 train and 8,580 test images (of ImageNet's training set).

    Khosla et al. 2011, http://vision.stanford.edu/aditya86/ImageNetDogs/. A class name is that of the folder without
    its WordNet id: 'Shih-Tzu'.
    """

    folder = 'stanford_dogs'
    layout = ('stanford_dogs/ with Images/n02085620-Chihuahua/n02085620_5927.jpg …, train_list.mat and test_list.mat')
    needs = ('Images', 'train_list.mat', 'test_list.mat')
    url = 'http://vision.stanford.edu/aditya86/ImageNetDogs'
    archives = ('images.tar', 'lists.tar')

    def read(self, root: Path, split: str) -> tuple[list[str], list[Sample]]:
        table = loadmat(root / self.folder / f'{split}_list.mat', squeeze_me=True)
        files, labels = table['file_list'].tolist(), (table['labels'] - 1).tolist()
        breeds = {label: file.split('/')[0].split('-', 1)[1] for file, label in zip(files, labels, strict=True)}
        images = root / self.folder / 'Images'
        return ([breeds[label] for label in range(len(breeds))],
                [(images / file, label) for file, label in zip(files, labels, strict=True)])

    def fetch(self, root: Path) -> None:
        for name in self.archives:
            download_and_extract_archive(f'{self.url}/{name}', str(root / self.folder), remove_finished=True)
