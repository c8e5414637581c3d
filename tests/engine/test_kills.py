"""Runs of nine kinds, each killed with SIGKILL at some dozen states and resumed, end as runs that
nobody killed, bit for bit.
"""

import os
import random
import shutil
import signal
import socket

import pytest
import torch

from tests.engine.runs import CROPS, build, folder_run, small
from tests.engine.test_resume import result
from vet.engine.saving.checkpoint import list_checkpoints

BASE = {'train.max_epochs': 6, 'train.log_every': 1, 'train.checkpoint': dict(every_steps=1, keep=2)}
STAGES = [dict(epochs=3, train='head.*'), dict(epochs=3, optimizer=dict(type='SGD', lr=0.1))]
TASKS = {
    f'dataset.{split}': dict(
        type='MultiTask',
        tasks={
            name: dict(type='Digits', split=split, digits=digits)
            for name, digits in dict(high=[8, 9], middle=[5, 6]).items()
        },
    )
    for split in ('train', 'test')
}
KINDS = {
    'plain': {},
    'ema': {'train.ema': 0.9},
    'accumulate': {'train.accumulate': 2, 'train.max_epochs': 10},
    'features': {'train.cache_features': True, 'model.tuners': [dict(type='LinearProbe')]},
    'images': {'train.cache_images': True, 'train.transform': CROPS},
    'stages': {'train.stages': STAGES, 'train.max_epochs': 6},
    'tasks': TASKS
    | {'train.max_epochs': 2, 'train.dataloader': dict(batch_size_per_gpu=32, workers_per_gpu=0)},
    'best': {'evaluation.select': 'best'},
    'two processes': {'train.dataloader': dict(batch_size_per_gpu=16, workers_per_gpu=0)},
}


def train(kind, folder, images, cache, rank=None, port=None):
    """Of a child process: trains, from the newest checkpoint where there is one."""
    torch.set_num_threads(1)
    os.environ['VET_CACHE_DIR'] = str(cache)
    if rank is not None:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE='2',
            LOCAL_WORLD_SIZE='2',
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(port),
        )
    options = BASE | KINDS[kind]
    if kind == 'images':
        folder_run(folder, images, 'auto', **options).train()
    elif kind == 'tasks':
        build(folder, 'auto', **options).train()
    else:
        small(folder, 'auto', **options).train()
    if rank is not None:
        torch.distributed.destroy_process_group()


def start(process, kind, folder, images, cache):
    if kind != 'two processes':
        return [process(train, kind, folder, images, cache)]
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    return [process(train, kind, folder, images, cache, rank, port) for rank in range(2)]


def newest(folder):
    found = list_checkpoints(folder / 'checkpoints') if folder.exists() else []
    return int(found[-1].name[5:]) if found else 0


def state(draw, folder):
    """Something that a run comes to: a step further on, a file half written, or the test results at its
    end.
    """
    steps = newest(folder) + draw.randint(1, 2)
    return draw.choice(
        [
            lambda: newest(folder) >= steps,
            lambda: newest(folder) >= steps and any((folder / 'checkpoints').glob('.*.tmp')),
            lambda: newest(folder) >= steps or (folder / 'predictions.npz').exists(),
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_killed_at_a_dozen_states(process, tmp_path, jpegs, kind):
    whole, folder, draw, kills = tmp_path / 'whole', tmp_path / 'run', random.Random(kind), 0
    children = start(process, kind, whole, jpegs, tmp_path / 'cache')
    for child in children:
        child.join()
        assert child.exitcode == 0
    while not (folder / 'summary.json').exists():
        if kills % 4 == 0:
            shutil.rmtree(tmp_path / 'cache', ignore_errors=True)
        children, is_there = start(process, kind, folder, jpegs, tmp_path / 'cache'), state(draw, folder)
        while kills < 15 and all(child.is_alive() for child in children) and not is_there():
            pass
        if kills < 15 and all(child.is_alive() for child in children):
            os.kill(draw.choice(children).pid, signal.SIGKILL)
            kills += 1
            if len(children) > 1:  # torchrun would end the other one
                for child in children:
                    child.kill()
            for child in children:
                child.join()
        ended = [child.join() or child.exitcode for child in children]
        assert all(code in (0, -signal.SIGKILL) for code in ended), ended
    print(f'kills of {kind}: {kills}')
    assert kills >= 6
    assert result(folder) == result(whole)
