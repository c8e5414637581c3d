"""Small campaigns that the benchmark's tests run: linear probe and BitFit on the shipped digits ViT,
one epoch of few images.
"""

import os
import signal
from pathlib import Path

import torch

from tests.benchmark.at_write import at_write
from vet.benchmark.campaign import Campaign
from vet.benchmark.results import read_result
from vet.benchmark.suite import load_suite
from vet.benchmark.worker import work

SUITE = """\"""Two digits, two tuners.\"""
few = {split: dict(type='Digits', split=split, digits=[5, 6]) for split in ('train', 'test')}
train = dict(max_epochs=1, threads=1, transform=[], precision='fp32', optimizer=dict(type='AdamW', lr=1e-2),
             dataloader=dict(batch_size_per_gpu=64, workers_per_gpu=0))
evaluation = dict(before=False, dataloader=dict(batch_size_per_gpu=128, workers_per_gpu=0))
backbones = dict(vit=dict(type='DigitsViT'))
datasets = dict(few=few)
tuners = dict(linear=[dict(type='LinearProbe')], bias=[dict(type='BitFit')])
"""
TIMES = ('train_seconds', 'wall_seconds', 'images_per_second', 'peak_memory_mb', 'curves', 'environment')


def write_suite(folder, more=''):
    """A suite file: SUITE and then `more`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'tiny.py'
    path.write_text(SUITE + more)
    return path


def here(jobs):
    """Launches jobs in this process, one after another."""
    for job in jobs:
        work(job)


def campaign(folder, launch=here, more='', options=None, only='*', work_dir='work'):
    """A checked campaign of the suite in `folder`, with its results and work folders there too."""
    suite = load_suite(write_suite(folder, more), options)
    made = Campaign(
        suite.cells(only), folder / 'results', folder / work_dir, str(folder / 'data'), launch, 'cpu'
    )
    made.check()
    return made


def run_campaign(folder, more='', dies_at=None):
    """Of a child process. dies_at: a folder, and the number of the write in the folder before which the
    process is killed.
    """
    torch.set_num_threads(1)
    if dies_at:
        at_write(*dies_at, lambda: os.kill(os.getpid(), signal.SIGKILL))
    campaign(Path(folder), more=more).run()


def results(folder):
    """Every result by its run's name; None for one that cannot be read."""
    return {path.stem: read_result(path) for path in sorted((folder / 'results' / 'tiny').glob('*.json'))}


def lasting(result):
    """All of a result that does not depend on the clock."""
    return {name: value for name, value in result.items() if name not in TIMES}
