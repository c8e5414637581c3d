"""Fixtures of the benchmark's tests: a campaign that nothing stopped, and a process that can be killed."""

import multiprocessing
import os

os.environ['OMP_NUM_THREADS'] = '1'     # the nets are too small to share out; child processes inherit it

import pytest
import torch

from tests.benchmark.runs import campaign

torch.set_num_threads(1)
TWO_SEEDS = 'seeds = [0, 1]'


@pytest.fixture(scope='session')
def process():
    """process(target, *args): a started child, forked from a server that has imported vet but computed nothing."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['tests.benchmark.runs', 'torch.utils.tensorboard'])

    def start(target, *args):
        child = context.Process(target=target, args=args)
        child.start()
        return child

    return start


@pytest.fixture(scope='session')
def unbroken(tmp_path_factory):
    """The folder of a campaign of two tuners and two seeds, made from end to end. Change only copies."""
    folder = tmp_path_factory.mktemp('unbroken')
    campaign(folder, more=TWO_SEEDS).run()
    return folder
