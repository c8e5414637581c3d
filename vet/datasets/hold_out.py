"""Holds out a part of the training images for validation, if there is no official validation split."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Subset

from vet.datasets.base import ImageData, objective_of, set_objective, targets_of
from vet.errors import DataError, UserError


class Part(Subset):
    """Some items of a dataset, with the dataset's `classes` and the items' `targets`.

    targets: None for masks, which are read with their images.
    """

    def __init__(self, dataset: Any, indices: Sequence[int], targets: Sequence[Any] | None):
        super().__init__(dataset, indices)
        self.classes = list(dataset.classes)
        self.label_map = getattr(dataset, 'label_map', None)
        if targets is not None:
            self.targets = list(targets)
        if objective_of(dataset) is not None:
            set_objective(self, {None: objective_of(dataset)})


def hold_out(dataset: ImageData, fraction: float = 0.1, seed: int = 0) -> tuple[Part, Part]:
    """Splits a dataset in two parts, stratified by the groups of the objective: (training, validation).

    A group of SingleLabel is a class. Other objectives may have one group.

    The validation part has the share `fraction` of the images. The same dataset, fraction and seed give the
    same parts. Each part has the order of the dataset. A class with a single image stays in training. The
    validation part has at least as many images as there are other classes. So for a small dataset of many
    classes, the part is larger than `fraction`.
    DataError if no class has two images. UserError if `fraction` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise UserError(f'a held-out fraction lies between 0 and 1, such as 0.1; given: {fraction!r}.')
    objective = objective_of(dataset)
    if getattr(objective, 'dense', False):
        kept, held = _drawn(np.zeros(len(dataset), dtype=int), fraction, seed)
        return Part(dataset, kept, None), Part(dataset, held, None)
    targets = targets_of(dataset)
    groups = np.array(targets if objective is None else [objective.group(target) for target in targets])
    kept, held = _drawn(groups, fraction, seed)
    kept_targets, held_targets = [targets[i] for i in kept], [targets[i] for i in held]
    return Part(dataset, kept, kept_targets), Part(dataset, held, held_targets)


def _drawn(groups: np.ndarray, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """The numbers of the images that stay, and of those that are held out."""
    count = Counter(groups.tolist())
    shared = np.array([index for index, group in enumerate(groups.tolist()) if count[group] > 1], dtype=int)
    if not len(shared):
        raise DataError(
            'no class has two images, so that none can be held out for validation; '
            'give more images or a validation split of your own.'
        )
    from sklearn.model_selection import StratifiedShuffleSplit  # slow to import, and rarely needed

    kinds = len(np.unique(groups[shared]))
    size = min(max(round(fraction * len(groups)), kinds), len(shared) - kinds)
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=size, random_state=seed)
    _, picked = next(splitter.split(shared, groups[shared]))
    held = np.sort(shared[picked])
    return np.setdiff1d(np.arange(len(groups)), held).tolist(), held.tolist()
