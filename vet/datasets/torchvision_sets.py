"""Datasets of torchvision whose images have a set of classes: CelebA's attributes, and the objects of VOC."""

from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets
from torchvision.datasets import voc

from vet.datasets.base import Sample

VOC = """background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike
    person pottedplant sheep sofa train tvmonitor""".split()  # of the numbers 0 to 20
OBJECTS = VOC[1:]  # without the background, which is no object


def has_sets(dataset: object) -> bool:
    """Whether an image of the dataset has a set of classes, with the options with which it was opened."""
    if isinstance(dataset, datasets.CelebA):
        return dataset.target_type == ['attr']
    return isinstance(dataset, datasets.VOCDetection)


def sets_of(dataset: Any) -> tuple[list[str], list[Sample]]:
    """Class names, and (file of the image, set of class numbers) pairs."""
    if isinstance(dataset, datasets.CelebA):
        return _attributes(dataset)
    return OBJECTS, list(zip(dataset.images, map(_objects, dataset.annotations), strict=True))


def _attributes(dataset: datasets.CelebA) -> tuple[list[str], list[Sample]]:
    names = [name for name in dataset.attr_names if name]  # the header ends with a space
    folder = Path(dataset.root) / dataset.base_folder / 'img_align_celeba'
    sets = [frozenset(np.flatnonzero(row).tolist()) for row in dataset.attr.numpy()]
    return names, [
        (str(folder / file), members) for file, members in zip(dataset.filename, sets, strict=True)
    ]


def _objects(file: str) -> frozenset[int]:
    """The classes of the objects. The makers of VOC leave out the objects that they mark as difficult."""
    annotation = voc.VOCDetection.parse_voc_xml(voc.ET_parse(file).getroot())['annotation']
    names = {each['name'] for each in annotation['object'] if each.get('difficult', '0') != '1'}
    return frozenset(map(OBJECTS.index, names))
