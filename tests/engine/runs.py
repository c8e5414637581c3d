"""Runs that the engine's tests train, all that one ends with, and how one breaks off or is killed at a
chosen moment.
"""

import multiprocessing
import os
import shutil
import signal
import threading

import pytest
import torch

from vet.builders import build_trainer
from vet.datasets.digits import Digits
from vet.datasets.image_folder import ImageFolder
from vet.engine import evaluate
from vet.engine.fast import routes
from vet.engine.learner import Learner
from vet.engine.saving.log import read_log

# the arguments with which Python starts a module or a script in two processes
TWO_PROCESSES = (
    '-m torch.distributed.run --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint localhost:0'.split()
)
routes.clock = lambda: 0.0  # in child processes too
NEW = [5, 6, 7, 8, 9]  # the digits that the backbone has not seen
CROPS = [
    dict(type='RandomResizedCrop'),
    dict(type='RandomHorizontalFlip'),
    dict(type='ColorJitter', brightness=0.4),
]


def config(**options):
    """A config of two epochs (ten steps each) over the 599 training digits; `options` are
    'train.max_epochs'=… and the like.
    """
    made = dict(
        model=dict(backbone=dict(type='DigitsViT'), tuners=[dict(type='LoRA', rank=4)]),
        dataset=dict(
            train=dict(type='Digits', split='train', digits=NEW),
            test=dict(type='Digits', split='test', digits=NEW),
        ),
        train=dict(
            max_epochs=2,
            optimizer=dict(type='AdamW', lr=5e-3, weight_decay=1e-4),
            transform=[],
            precision='fp32',
            dataloader=dict(batch_size_per_gpu=64, workers_per_gpu=0),
        ),
        evaluation=dict(dataloader=dict(batch_size_per_gpu=256, workers_per_gpu=0), report=False),
    )
    for path, value in options.items():
        *sections, key = path.split('.')
        section = made
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    return made


def build(work_dir, resume=None, data=None, **options):
    """A trainer of `config(**options)` on the CPU; data: datasets in place of the config's."""
    return build_trainer(
        model=config(**options), work_dir=work_dir, resume=resume, device='cpu', **(data or {})
    )


class SmallDigits(Digits):
    """Every fifth digit: 120 training images, 60 test images."""

    def __init__(self, split):
        super().__init__(split=split, digits=NEW)
        self.samples, self.targets = self.samples[::5], self.targets[::5]


def small(work_dir, resume=None, **options):
    """A trainer on SmallDigits, in batches of 32: four steps an epoch."""
    return build(
        work_dir,
        resume,
        dict(train_dataset=SmallDigits('train'), eval_dataset=SmallDigits('test')),
        **{'train.dataloader': dict(batch_size_per_gpu=32, workers_per_gpu=0)} | options,
    )


def folder_run(work, jpegs, resume=None, **options):
    """A trainer on a folder of train/ and test/, in batches of 8, cropped at random."""
    data = dict(train_dataset=ImageFolder(jpegs, 'train'), eval_dataset=ImageFolder(jpegs, 'test'))
    batches = dict(batch_size_per_gpu=8, workers_per_gpu=0)
    return build(work, resume, data, **{'train.dataloader': batches, 'train.transform': CROPS} | options)


def ended(trainer):
    """All that a run ends with, apart from times."""
    summary = trainer.train()
    curves = [
        {name: value for name, value in record.items() if name not in ('images_per_second', 'memory_mb')}
        for record in read_log(trainer.folder.path)
    ]
    return dict(
        accuracy=summary['accuracy'],
        validation=summary['validation'],
        parameters=summary['parameters'],
        curves=curves,
        tensors={name: tensor.tolist() for name, tensor in trainer.model.trained_state().items()},
    )


def failing(function, at):
    """`function`, until the number that it is given last but one or last is `at`."""

    def called(*args):
        if at in args[1:3]:
            raise ZeroDivisionError
        return function(*args)

    return called


def ended_after_a_break(make, at):
    """What ends a run that make(resume) begins, breaks off within step `at`, and makes again to go on."""
    with pytest.MonkeyPatch.context() as broken, pytest.raises(ZeroDivisionError):
        broken.setattr(Learner, 'step', failing(Learner.step, at))
        make(None).train()
    return ended(make('auto'))


# 539 images of which 60 are held out: nine batches, five steps an epoch
EVERYTHING = {
    'model.tuners': [dict(type='LoRA', rank=4, dropout=0.2)],
    'train.max_epochs': 3,
    'train.mixup': 0.4,
    'train.cutmix': 1.0,
    'train.ema': 0.8,
    'train.accumulate': 2,
    'train.clip_norm': 1.0,
    'train.label_smoothing': 0.1,
    'train.head_lr': 1e-2,
    'train.transform': [dict(type='RandomAffine', degrees=8, translate=(0.06, 0.06))],
    'train.checkpoint': dict(every_steps=3, keep=2),
    'train.log_every': 2,
    'train.dataloader': dict(batch_size_per_gpu=64, workers_per_gpu=2),
    'evaluation.select': 'best',
}


def train_everything(work_dir, resume=None, moment=None):
    """Trains with everything random turned on; `moment` (a name, a count): kills this process then, or
    stops it for ever.
    """
    if moment:
        end_at(*moment)
    torch.set_num_threads(1)
    # of the loader's workers, which a server would outlive
    multiprocessing.set_start_method('fork', force=True)
    build(work_dir, resume, **EVERYTHING).train()


def end_at(name, count, end='kill'):
    """From now, the `count`-th call of what `name` stands for is where this process dies (before it does
    anything).

    end='wait': this process does not die, it waits there until another process kills it.
    """
    owner, attribute, matches = {
        'step': (Learner, 'step', lambda *_, **__: True),  # its images are already read, and some after it
        'backward': (torch.Tensor, 'backward', lambda *_, **__: True),  # a step has two
        'validation': (evaluate, 'score', lambda *_, **__: True),  # the first one is the test before step 0
        'tensors': (os, 'replace', lambda source, target: target.name == 'state.safetensors'),
        'progress': (os, 'replace', lambda source, target: target.name == 'progress.json'),
        'checkpoint': (os, 'rename', lambda source, target: target.name.startswith('step-')),
        'removal': (shutil, 'rmtree', lambda path, **_: '.old.' in path.name),
        'output': (os, 'rename', lambda source, target: target.name == 'output'),
        'summary': (os, 'replace', lambda source, target: target.name == 'summary.json'),
    }[name]
    original, calls = getattr(owner, attribute), []

    def dying(*args, **kwargs):
        if matches(*args, **kwargs):
            calls.append(1)
            if len(calls) == count:
                os.kill(os.getpid(), signal.SIGKILL) if end == 'kill' else threading.Event().wait()
        return original(*args, **kwargs)

    setattr(owner, attribute, dying)
