"""A few images of each class of another dataset."""

from collections.abc import Mapping
from random import Random
from typing import Any

from vet.allowed import Count, Seed
from vet.datasets.base import targets_of
from vet.datasets.hold_out import Part
from vet.datasets.wrappers import given_images
from vet.errors import DataError, UserError, shown
from vet.registry import DATASETS


@DATASETS.register_module()
class FewShot(Part):
    """`shots` images of each class of `dataset`, drawn by the seed, in the order of the dataset.

    dataset: a dataset with one class for each image, or its config entry, such as dict(type='Flowers102',
        split='train').
    shots: the number of images of each class. More shots hold the images of fewer shots of the same seed.
    seed: the seed of the draws.
    DataError for a class with too few images.
    """

    def __init__(self, dataset: object, shots: Count, seed: Seed = 0, root: object = 'data'):
        dataset = given_images(dataset)
        whole: Any = DATASETS.build(dict(dataset), root=root) if isinstance(dataset, Mapping) else dataset
        if getattr(whole, 'objective', None) is not None:
            raise UserError(
                f'FewShot has the dataset {type(whole).__name__} of the objective {shown(whole.objective)}; '
                'allowed: a dataset with one class for each image.'
            )
        targets: list[Any] = targets_of(whole)
        order = list(range(len(targets)))
        Random(seed).shuffle(order)
        chosen: dict[int, list[int]] = {label: [] for label in range(len(whole.classes))}
        for index in order:
            if len(chosen[targets[index]]) < shots:
                chosen[targets[index]].append(index)
        for label, indices in chosen.items():
            if len(indices) < shots:
                raise DataError(
                    f'shots is {shots}, but the class {whole.classes[label]!r} has only {len(indices)} '
                    'images; give fewer shots, or a larger split.'
                )
        indices = sorted(index for of_class in chosen.values() for index in of_class)
        super().__init__(whole, indices, [targets[index] for index in indices])
