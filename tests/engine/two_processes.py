"""Run by torchrun: the trainings and the scores that test_two_processes compares with one process's.

python -m torch.distributed.run --nproc-per-node 2 -m tests.engine.two_processes FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from tests.engine.runs import build, config
from vet.builders import build_trainer
from vet.core.tuner import Tuner
from vet.registry import TUNERS

METRICS = ['accuracy', 'mean_per_class_accuracy', 'macro_f1']
CASES = {
    'plain': {},
    'accumulated': {'train.accumulate': 2},
    'stages': {
        'train.stages': [dict(epochs=1, train='head.*'), dict(epochs=1, optimizer=dict(type='SGD', lr=0.1))]
    },
    'sam and schedule-free': {
        'train.sam': 0.1,
        'train.optimizer': dict(type='AdamWScheduleFree', lr=5e-3),
        'train.lr_scheduler': dict(type='ConstantLR'),
    },
    'tasks': {
        'model.shared': r'.*\.A',
        **{
            f'dataset.{split}': dict(
                type='MultiTask',
                tasks={
                    name: dict(type='Digits', split=split, digits=digits)
                    for name, digits in dict(high=[7, 8, 9], middle=[5, 6]).items()
                },
            )
            for split in ('train', 'test')
        },
    },
}


def train_all(folder, processes):
    """Global batches of 46: the last one of an epoch is a single image, so that one of two processes has
    none.

    Writes each summary, and the metrics of the 599 training images, which two do not divide.
    """
    for name, options in CASES.items():
        trainer = build(
            folder / name,
            **{
                'train.clip_norm': 1.0,
                'train.label_smoothing': 0.1,
                'train.ema': 0.9,
                'train.dataloader': dict(batch_size_per_gpu=46 // processes, workers_per_gpu=0),
                'evaluation.metrics': METRICS,
                'evaluation.select': 'best',
                **options,
            },
        )
        summary = trainer.train()
        assert trainer.accelerator.num_processes == processes
        summary['on_train'] = trainer.evaluate('train')
        if trainer.accelerator.is_main_process:
            (folder / f'{name}.json').write_text(json.dumps(summary))


RESNET = dict(
    type='timm',
    name='resnet18',
    pretrained=False,
    preprocessing=dict(size=16),
    kwargs=dict(layers=(1, 1, 1, 1), channels=(8, 8, 16, 16)),
)
NORMS = {
    'model.backbone': RESNET,
    'model.tuners': [dict(type='Full')],
    'train.transform': [dict(type='Resize', size=16)],
    'train.optimizer': dict(type='AdamW', lr=1e-2),
    'train.ema': 0.9,
}
GPS = {
    'model.tuners': [dict(type='GPS', images=32)],
    'train.dataloader': dict(batch_size_per_gpu=16, workers_per_gpu=0),
}


class HalfRead(nn.Module):
    """y + used; `unread` has no gradient, ever."""

    def __init__(self, channels):
        super().__init__()
        self.used, self.unread = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x, y):
        return y + self.used


class Unread(Tuner):
    """Trains twice as many numbers as the network reads, and says so."""

    no_gradient = 'half of the numbers are for another use'

    def __init__(self):
        super().__init__('block')

    def tune(self, site):
        self.after(site, HalfRead(site.out_shape[-1]))


def train_on_two(folder):
    """What one process cannot do alike: batch norms that train, GPS's choice, numbers without a gradient. No
    device is given.

    Each process writes what it evaluates and what it holds.
    """
    TUNERS.module_dict['Unread'] = Unread
    for name, options in {
        'norms': NORMS,
        'gps': GPS,
        'unread': {'model.tuners': [dict(type='Unread')]},
    }.items():
        trainer = build_trainer(
            model=config(
                **{
                    'train.max_epochs': 1,
                    'train.dataloader': dict(batch_size_per_gpu=23, workers_per_gpu=0),
                    **options,
                }
            ),
            work_dir=folder / name,
        )
        summary = trainer.train()
        rank = trainer.accelerator.process_index
        state = {
            key: value.double().flatten().tolist() for key, value in trainer.model.trained_state().items()
        }
        (folder / f'{name}-{rank}.json').write_text(
            json.dumps(
                dict(
                    processes=trainer.accelerator.num_processes,
                    device=str(trainer.accelerator.device),
                    accuracy=summary['accuracy'],
                    state=state,
                    on_train=trainer.evaluate('train')['accuracy'],
                )
            )
        )


if __name__ == '__main__':
    torch.set_num_threads(1)
    # first: a process keeps the way in which its first trainer met the others
    train_on_two(Path(sys.argv[1]))
    train_all(Path(sys.argv[1]), processes=2)
    torch.distributed.destroy_process_group()
