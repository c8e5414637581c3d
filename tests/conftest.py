"""Fixtures of many rooms: one short run of the quickstart, and a fresh Python process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vet import build_trainer

ROOT = Path(__file__).parents[1]
QUICK = {'train.max_epochs': 1, 'train.log_every': 5}


@pytest.fixture(scope='session', autouse=True)
def _one_thread():
    torch.set_num_threads(1)    # the nets are too small to share out


@pytest.fixture(scope='session')
def trainer(tmp_path_factory):
    """A trainer that has trained the quickstart for one epoch. Look at it and its folder, change only copies."""
    trainer = build_trainer(model=ROOT / 'configs/quickstart.py', work_dir=tmp_path_factory.mktemp('quickstart') / 'work',
                            cfg_options=QUICK, device='cpu')
    trainer.summary = trainer.train()
    return trainer


@pytest.fixture(scope='session')
def python(tmp_path_factory):
    """python(*args, cwd=…, **environment): a finished fresh process, with vet but nothing else of this one."""
    def run(*args, cwd=None, **environment):
        own = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', **environment}
        return subprocess.run([sys.executable, *map(str, args)], cwd=cwd or tmp_path_factory.mktemp('cwd'), env=own,
                              capture_output=True, text=True, timeout=120)
    return run
