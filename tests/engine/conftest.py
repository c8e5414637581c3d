"""Fixtures of the engine's tests: one thread for tiny nets, and a process that can be killed."""

import multiprocessing
import os

os.environ['OMP_NUM_THREADS'] = '1'     # the nets are too small to share out; child processes inherit it

import pytest
import torch

from vet.registry import TUNERS

torch.set_num_threads(1)


@pytest.fixture(scope='session')
def process():
    """process(target, *args): a started child, forked from a server that has imported vet but computed nothing."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['tests.engine.runs', 'torch.utils.tensorboard'])

    def start(target, *args):
        child = context.Process(target=target, args=args)
        child.start()
        return child

    return start


@pytest.fixture
def register_tuner(monkeypatch):
    """register_tuner(class): a tuner that a config can name for one test, and that no other suite meets."""
    return lambda tuner: monkeypatch.setitem(TUNERS.module_dict, tuner.__name__, tuner)


@pytest.fixture
def deterministic_mode():
    """Puts torch's process-wide switch back after a test that turns it on."""
    was = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(was)
