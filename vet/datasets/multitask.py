"""Several datasets as one dataset, for a model with one head per dataset."""

from collections.abc import Mapping
from typing import Any

from torch.utils.data import ConcatDataset

from vet.datasets.wrappers import given_images
from vet.errors import UserError, shown
from vet.registry import DATASETS


@DATASETS.register_module()
class MultiTask(ConcatDataset):
    """The datasets of several tasks, one after another. An item is (image, label). The label counts the
    task's classes.

    tasks: {task: dataset}, or {task: config entry such as dict(type='Flowers102', split='train')}.
    classes: {task: class names}.
    """

    def __init__(self, tasks: Mapping[str, Any], root: object = 'data'):
        wrong = [name for name in tasks if not str(name).isidentifier()]
        if wrong or not tasks:
            raise UserError(
                f'tasks has the names {list(map(str, tasks))}; allowed: one or more of letters, digits and '
                '_, each with a dataset, such as tasks=dict(flowers=dict(type="Flowers102", split="train")).'
            )
        tasks = {name: given_images(entry) for name, entry in tasks.items()}
        for name, entry in tasks.items():
            if not isinstance(entry, Mapping) and not hasattr(entry, 'classes'):
                raise UserError(
                    f'tasks.{name} is {shown(entry)}; give a dataset that has `classes`, or a config entry '
                    'such as dict(type="Flowers102", split="train").'
                )
        self.tasks = {
            name: DATASETS.build(dict(entry), root=root) if isinstance(entry, Mapping) else entry
            for name, entry in tasks.items()
        }
        super().__init__(self.tasks.values())
        self.classes = {name: list(dataset.classes) for name, dataset in self.tasks.items()}

    def task_of(self, index: int) -> str:
        """The task that item `index` belongs to."""
        return next(name for name, end in zip(self.tasks, self.cumulative_sizes) if index < end)
