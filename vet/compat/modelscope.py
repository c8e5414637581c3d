"""The names that a ModelScope training script for vision-efficient-tuning imports.

The script runs after a change of its import lines only: `from vet.compat.modelscope import DownloadMode,
MsDataset, Tasks, Trainers, build_trainer, pipeline`.
"""

import warnings
from enum import Enum
from pathlib import Path
from typing import Any

from vet import builders
from vet.errors import UnknownNameError
from vet.pipelines import Classifier
from vet.pipelines import pipeline as _pipeline

SUBSETS = {
    'OxfordFlowers': 'Flowers102',
    'CIFAR100': 'CIFAR100',
    'CUB': 'CUB200',
    'NABirds': 'NABirds',
    'StanfordCars': 'StanfordCars',
    'StanfordDogs': 'StanfordDogs',
}


class Trainers:
    vision_efficient_tuning = 'vision-efficient-tuning'


class Tasks:
    vision_efficient_tuning = 'vision-efficient-tuning'


class DownloadMode(Enum):
    REUSE_DATASET_IF_EXISTS = 'reuse_dataset_if_exists'
    FORCE_REDOWNLOAD = 'force_redownload'


class MsDataset:
    """ModelScope's dataset loader, for the six datasets of its vision-efficient-tuning models."""

    @staticmethod
    def load(
        dataset_name: str,
        namespace: str | None = None,
        subset_name: str | None = None,
        split: str = 'train',
        download_mode: DownloadMode = DownloadMode.REUSE_DATASET_IF_EXISTS,
        **_: object,
    ) -> Any:
        """The split of the dataset `subset_name` in 'foundation_model_evaluation_benchmark'.

        split: 'train', or 'eval' for the official test split.
        The dataset is read from the data root (VET_DATA_ROOT), and downloaded if it is missing.
        FORCE_REDOWNLOAD never changes existing files. vet warns, and uses the existing files.
        """
        if dataset_name != 'foundation_model_evaluation_benchmark':
            raise UnknownNameError('dataset', dataset_name, ['foundation_model_evaluation_benchmark'])
        if subset_name not in SUBSETS:
            raise UnknownNameError('subset_name', subset_name, SUBSETS)
        dataset = builders.build_dataset(dict(type=SUBSETS[subset_name], split=split))
        if download_mode is DownloadMode.FORCE_REDOWNLOAD:
            warnings.warn(
                f'{subset_name} is not downloaded again: the copy under {builders.resolve_data_root()} is '
                'used unchanged. To get a new copy, move that copy away.',
                stacklevel=2,
            )
        return dataset


build_trainer = builders.build_trainer


def pipeline(task: str, model: str | Path, model_revision: str | None = None, **kwargs: Any) -> Classifier:
    """vet's pipeline. `model_revision` is for ModelScope, and means nothing for a local model folder."""
    return _pipeline(task, model, **kwargs)
