"""Handwritten digits as images of several classes and of numbers, as tables and as datasets of a user."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from tests.engine.runs import SmallDigits, config
from vet import build_trainer

TAGS = ['odd', 'loop', 'large']
TAGS_OF = {5: {'odd'}, 6: {'loop'}, 7: {'odd'}, 8: {'loop', 'large'}, 9: {'odd', 'loop', 'large'}}


class Tagged:
    """A user's dataset: digits with sets of class names, without `targets`."""

    classes = TAGS
    objective = dict(type='MultiLabel')

    def __init__(self, split, targets=None):
        self.digits = SmallDigits(split)
        self.given = targets or [TAGS_OF[label + 5] for label in self.digits.targets]

    def __len__(self):
        return len(self.digits)

    def __getitem__(self, index):
        return self.digits[index][0], self.given[index]


class Measured(Tagged):
    """A user's dataset: digits with two numbers of very different sizes, with `targets`."""

    classes = ['worth', 'share']
    objective = dict(type='Regression', units=dict(worth='EUR'))

    def __init__(self, split, targets=None):
        super().__init__(split)
        self.given = targets or [(2e6 + 1e4 * label, 0.01 * label) for label in self.digits.targets]
        self.targets = self.given


def trainer_of(work, kind, resume=None, **options):
    """A trainer of two epochs on a kind of dataset, in batches of 32."""
    options = {'train.dataloader': dict(batch_size_per_gpu=32, workers_per_gpu=0)} | options
    data = dict(train_dataset=kind('train'), eval_dataset=kind('test'))
    return build_trainer(model=config(**options), work_dir=work, resume=resume, device='cpu', **data)


@pytest.fixture
def kinds():
    return dict(tagged=Tagged, measured=Measured)


@pytest.fixture(scope='session')
def tables(tmp_path_factory):
    """A folder with digits as files, and two tables of them: labels.csv with tags, and numbers.csv."""
    folder: Path = tmp_path_factory.mktemp('tables')
    rows = []
    for split in ('train', 'test'):
        data = SmallDigits(split)
        for i in range(len(data)):
            name = f'{split}-{i}.png'
            Image.fromarray(data.samples[i][0]).save(folder / name)
            digit = data.targets[i] + 5
            part = 'val' if split == 'train' and i % 4 == 0 else split
            rows.append((name, '|'.join(sorted(TAGS_OF[digit] - {'odd'})), digit, digit / 100, part))
    with open(folder / 'table.csv', 'w', newline='') as file:
        csv.writer(file).writerows([('path', 'label', 'worth', 'share', 'split'), *rows])
    return folder


@pytest.fixture
def table_run(tables):
    """table_run(work, entry, **options): a trainer on the splits of the table."""

    def run(work, entry, **options):
        made = config(**{'train.dataloader': dict(batch_size_per_gpu=32, workers_per_gpu=0)} | options)
        made['dataset'] = {
            split: dict(type='CSV', file=str(tables / 'table.csv'), split=split, **entry)
            for split in ('train', 'val', 'test')
        }
        return build_trainer(model=made, work_dir=work, device='cpu')

    return run
