"""Two processes train and measure what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.runs import config
from tests.engine.two_processes import CASES, METRICS, train_all
from vet.engine.log import read_log
from vet.registry import DATASETS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """The folders of one process and of two."""
    one, two = tmp_path_factory.mktemp('one'), tmp_path_factory.mktemp('two')
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--rdzv-backend', 'c10d',
               '--rdzv-endpoint', 'localhost:0', '-m', 'tests.engine.two_processes', str(two)]
    with subprocess.Popen(command, cwd=ROOT, env=dict(os.environ, PYTHONPATH=str(ROOT)), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        train_all(one, processes=1)
        output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return one, two


@pytest.mark.parametrize('name', CASES)
def test_weights_agree(runs, name):
    one, two = (load_file(folder / name / 'output' / 'tuner.safetensors') for folder in runs)
    assert set(one) == set(two)
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', CASES)
def test_metrics_agree(runs, name):
    """Exactly, on numbers of images that two divides and does not divide."""
    dataset = config()['dataset']
    lengths = {split: len(DATASETS.build(dataset[split], root='')) for split in dataset}
    assert lengths['train'] == 599
    one, two = (json.loads((folder / f'{name}.json').read_text()) for folder in runs)
    keys = (*METRICS, 'before', 'validation', 'on_train', 'selected', 'steps', 'parameters')
    assert {key: two[key] for key in keys} == {key: one[key] for key in keys}
    assert len(set(one['on_train'].values())) >= 3      # three metrics that agree by chance would prove little


@pytest.mark.parametrize('name', CASES)
def test_logs_agree(runs, name):
    one, two = (read_log(folder / name) for folder in runs)
    assert len(one) == len(two) > 2
    for a, b in zip(one, two):
        for key in ('step', 'epoch', 'loss', 'accuracy', 'lr', 'val_accuracy'):
            assert b.get(key) == pytest.approx(a.get(key), abs=1e-5), key
