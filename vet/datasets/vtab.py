"""VTAB-1k: 19 tasks of 1,000 training images each.   Zhai et al. 2019, arXiv:1910.04867"""

from pathlib import Path
from typing import Annotated

from vet.allowed import OneOf
from vet.datasets.base import ImageDataset, Sample, require_files, resolve_split
from vet.datasets.published import how_to_provide, require_inside
from vet.errors import DataError, UnknownNameError
from vet.registry import DATASETS

GROUPS = dict(  # task: its number of classes
    natural=dict(
        caltech101=102, cifar=100, dtd=47, oxford_flowers102=102, oxford_iiit_pet=37, sun397=397, svhn=10
    ),
    specialized=dict(patch_camelyon=2, eurosat=10, resisc45=45, diabetic_retinopathy=5),
    structured=dict(
        clevr_count=8,
        clevr_dist=6,
        dmlab=6,
        kitti=4,
        dsprites_loc=16,
        dsprites_ori=16,
        smallnorb_azi=18,
        smallnorb_ele=9,
    ),
)
CLASSES = {task: number for tasks in GROUPS.values() for task, number in tasks.items()}
LISTS = {'train': 'train800', 'val': 'val200', 'train+val': 'train800val200', 'test': 'test'}


@DATASETS.register_module(name=['VTAB', 'VTAB-1k'])
class VTAB(ImageDataset):
    """One task: 800 train and 200 val images, and the whole test set of the task.

    NOAH's script makes this layout. The code of SSF, FacT, Convpass and RepAdapter reads it too:
    root/vtab-1k/<task>/train800.txt, val200.txt, train800val200.txt and test.txt. Each line is a path below
    that folder and a class number, such as 'images/test/000000.jpg 12'. 'train+val' is the list
    train800val200, which is the training set of published numbers.
    split: 'train', 'val', 'train+val' or 'test'.
    task: one of the 19 tasks.
    classes: '0' … 'K-1', with the published K of the task. The small splits do not have every class.
    """

    def __init__(
        self, root: str | Path = 'data', split: str = 'train', *, task: Annotated[str, OneOf(tuple(CLASSES))]
    ):
        if task not in CLASSES:
            raise UnknownNameError('task of VTAB', task, CLASSES)
        name = LISTS['+'.join(resolve_split(split, ('train', 'val', 'test'), 'VTAB'))]
        samples = _read(Path(root).expanduser() / 'vtab-1k' / task / f'{name}.txt', CLASSES[task])
        super().__init__(map(str, range(CLASSES[task])), require_files(samples, f'VTAB ({task}, {name}.txt)'))


def _read(path: Path, num_classes: int) -> list[Sample]:
    """The samples of a list. Paths are below the folder of the list. DataError with the line's number."""
    if not path.is_file():
        layout = 'vtab-1k/<task>/ with train800.txt, val200.txt, train800val200.txt, test.txt and images/'
        raise DataError(
            f'VTAB: {str(path)!r} is missing. '
            + how_to_provide(
                layout,
                "make the list with NOAH's script, data/vtab-source/get_vtab1k.py of "
                'github.com/ZhangYuanhan-AI/NOAH, or unpack an archive of its output in the data root',
            )
        )
    samples = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        image, _, label = line.strip().rpartition(' ')
        if not image or not label.isdecimal() or int(label) >= num_classes:
            raise DataError(
                f'line {number} of {str(path)!r} is {line!r}; expected: a path and a class number from 0 to '
                f'{num_classes - 1}, such as "images/test/000000.jpg 1". Make the list again.'
            )
        samples.append((str(path.parent / image), int(label)))
    require_inside(samples, path.parent, f'VTAB: {str(path)!r}')
    return samples
