"""Run by torchrun: the trainings and the scores that test_two_processes compares with one process's.

    python -m torch.distributed.run --nproc-per-node 2 -m tests.engine.two_processes FOLDER
"""

import json
import sys
from pathlib import Path

import torch

from tests.engine.runs import build

METRICS = ['accuracy', 'mean_per_class_accuracy', 'macro_f1']
CASES = {
    'plain': {}, 'accumulated': {'train.accumulate': 2},
    'stages': {'train.stages': [dict(epochs=1, train='head.*'), dict(epochs=1, optimizer=dict(type='SGD', lr=0.1))]},
    'tasks': {'model.shared': r'.*\.A', **{f'dataset.{split}': dict(type='MultiTask', tasks={
        name: dict(type='Digits', split=split, digits=digits) for name, digits in dict(high=[7, 8, 9], middle=[5, 6]).items()})
        for split in ('train', 'test')}}}


def train_all(folder, processes):
    """Global batches of 46: the last one of an epoch is a single image, so that one of two processes has none.

    Writes each summary, and the metrics of the 599 training images, which two do not divide.
    """
    for name, options in CASES.items():
        trainer = build(folder / name, **{
            'train.clip_norm': 1.0, 'train.label_smoothing': 0.1, 'train.ema': 0.9,
            'train.dataloader': dict(batch_size_per_gpu=46 // processes, workers_per_gpu=0),
            'evaluation.metrics': METRICS, 'evaluation.select': 'best', **options})
        summary = trainer.train()
        assert trainer.accelerator.num_processes == processes
        summary['on_train'] = trainer.evaluate('train')
        if trainer.accelerator.is_main_process:
            (folder / f'{name}.json').write_text(json.dumps(summary))


if __name__ == '__main__':
    torch.set_num_threads(1)
    train_all(Path(sys.argv[1]), processes=2)
    torch.distributed.destroy_process_group()
