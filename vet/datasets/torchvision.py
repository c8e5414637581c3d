"""Any image classification dataset of torchvision, by name."""

import inspect
import operator
from bisect import bisect_right
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import ConcatDataset
from torchvision import datasets

from vet.datasets.base import ImageDataset, Sample, resolve_split
from vet.datasets.image import open_image
from vet.datasets.published import how_to_provide, require_inside, torchvision_bounds
from vet.datasets.torchvision_sets import has_sets, sets_of
from vet.errors import DataError, UnknownNameError, UserError
from vet.registry import DATASETS

SPELLINGS = {'val': ('val', 'valid'), 'eval': ('test',), 'train+val': ('trainval',)}
PUBLIC_TARGETS = ('targets', 'labels')
TARGETS = (*PUBLIC_TARGETS, '_labels', 'y')
RESERVED = {'self', 'kwargs', 'root', 'download', 'loader', 'transform', 'target_transform', 'transforms'}


@DATASETS.register_module(name='torchvision')
class TorchvisionDataset(ImageDataset):
    """The torchvision dataset `name`, such as 'Food101', in `root`, in torchvision's layout.

    name: the name of the class in torchvision.datasets.
    download: True lets torchvision download missing data.
    split: 'train', 'val', 'test' (also 'eval') and 'train+val' become the argument and the spelling of the
        dataset. Other words of a dataset (SVHN's 'extra') pass unchanged. A dataset without splits needs
        None.
    options: further arguments of the dataset.
    The class names are those of the dataset. If the dataset has no class names, they are the numbers.
    CelebA (its 40 attributes) and VOCDetection (its 20 kinds of objects) have a set of classes for each
    image: see the objective MultiLabel. Masks have the type 'torchvision-masks'.
    UserError for an unknown name, split or option, and for a dataset that is not for image classification.
    DataError if data are missing.
    """

    def __init__(
        self,
        root: str | Path = 'data',
        split: str | None = 'train',
        *,
        name: str,
        download: bool = True,
        options: Mapping[str, object] | None = None,
    ):
        if name not in datasets.__all__:
            raise UnknownNameError('torchvision dataset', name, datasets.__all__)
        plugin = getattr(datasets, name)
        options = dict(options or {})
        accepted = _accepted(plugin)
        if unknown := sorted(set(options) - (accepted - RESERVED)):
            raise UnknownNameError(f'option of torchvision.datasets.{name}', unknown[0], accepted - RESERVED)
        # This loader gives the file's name. So no image is decoded early, and open_image decodes each image.
        defaults: dict[str, Any] = {'root': Path(root).expanduser(), 'download': download, 'loader': str}
        given = {**{key: value for key, value in defaults.items() if key in accepted}, **options}
        try:
            with torchvision_bounds():
                opened = _open(plugin, split, accepted - set(options), given)
                classes, samples = _read(opened, given)
        except (OSError, RuntimeError, DataError) as error:
            raise DataError(
                f'torchvision.datasets.{name} cannot be read from {str(root)!r}: {error}. '
                + how_to_provide('it in the layout of torchvision', 'run once with a network')
            ) from error
        except TypeError as error:
            raise UserError(
                f'torchvision.datasets.{name} cannot be used with options={options!r}: {error}.'
            ) from error
        are_sets = has_sets(opened[0])
        self._data: ConcatDataset = ConcatDataset(opened)
        if 'loader' in given or are_sets:
            require_inside(samples, defaults['root'], f'torchvision.datasets.{name}')
        else:
            samples = [(index, label) for index, (_, label) in enumerate(samples)]
        super().__init__(classes, samples, dict(type='MultiLabel') if are_sets else None)

    def open(self, source: object) -> Image.Image:
        return open_image(self._data[source][0] if isinstance(source, int) else source, self.gray_range)

    def identity(self, source: object) -> Hashable:
        if not isinstance(source, int):
            return super().identity(source)
        number = bisect_right(self._data.cumulative_sizes, source)
        start = self._data.cumulative_sizes[number - 1] if number else 0
        return repr(self._data.datasets[number]), source - start


def _accepted(plugin: type) -> set[str]:
    """The arguments of a dataset, with the arguments of the class that gets its **kwargs."""
    names: set[str] = set()
    for base in plugin.__mro__:
        if '__init__' in vars(base):
            parameters = inspect.signature(vars(base)['__init__']).parameters
            names |= set(parameters)
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return names


def _open(plugin: type, split: str | None, accepted: set[str], given: dict[str, object]) -> list[Any]:
    """The datasets that make up the split. train+val may be two datasets."""
    name = f'torchvision.datasets.{plugin.__name__}'
    argument = next((word for word in ('train', 'split', 'image_set') if word in accepted), None)
    if argument is None and split is None:
        return [plugin(**given)]
    if argument is None or split is None:
        raise UserError(
            f'{name} has {"no" if argument is None else "several"} splits; given: split={split!r}. '
            f'{"Say split=None" if argument is None else "Name one"}.'
        )
    if argument == 'train':
        [split] = resolve_split(split, ('train', 'test'), name)
        return [plugin(train=split == 'train', **given)]
    refusal = None
    for value in SPELLINGS.get(split, (split,)):
        try:
            return [plugin(**{argument: value}, **given)]
        except DataError:  # an archive was refused
            raise
        except ValueError as error:
            refusal = error
    if split == 'train+val':
        return [dataset for half in ('train', 'val') for dataset in _open(plugin, half, accepted, given)]
    raise UserError(f'{name} refuses split={split!r}: {refusal}') from refusal


def _read(opened: list[Any], given: dict[str, Any]) -> tuple[list[str], list[Sample]]:
    """Class names and samples of the datasets that make up the split."""
    if has_sets(opened[0]):
        tables = [sets_of(dataset) for dataset in opened]
        return tables[0][0], [sample for _, samples in tables for sample in samples]
    samples = [sample for dataset in opened for sample in _samples(dataset, given)]
    return _classes(opened[0], samples), samples


def _samples(dataset: Any, given: dict[str, Any]) -> list[tuple[Any, int]]:
    """(source, label) pairs. If the dataset takes no `loader`, only the labels count."""
    name = f'torchvision.datasets.{type(dataset).__name__}'
    try:
        _, label = dataset[0]
        operator.index(label)
    except (TypeError, ValueError) as error:
        raise UserError(
            f'{name} is no image classification dataset: its items are not an image and a class number. '
            'If the items have masks, use type="torchvision-masks".'
        ) from error
    if 'loader' in given:
        return [dataset[index] for index in range(len(dataset))]
    # an option may change the meaning of a label; then the private attributes are not the labels
    names = PUBLIC_TARGETS if set(given) - {'root', 'download'} else TARGETS
    targets = next((getattr(dataset, name) for name in names if hasattr(dataset, name)), None)
    try:
        return [(None, operator.index(label)) for label in targets]  # type: ignore[union-attr]  # None: TypeError
    except TypeError:  # the dataset has no list, or not one number per image (QMNIST)
        return [(None, dataset[index][1]) for index in range(len(dataset))]


def _classes(dataset: object, samples: list[tuple[object, int]]) -> list[str]:
    names = getattr(dataset, 'classes', None) or getattr(dataset, 'categories', None)
    return list(names or map(str, range(1 + max(label for _, label in samples))))
