"""Fixtures of many rooms: one short run of the quickstart, a fresh Python process, and a process that
can be killed.
"""

import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'  # child processes inherit it
os.environ['RAY_worker_niceness'] = '0'  # by default, tasks yield to all other processes of the machine
os.environ['RAY_ENABLE_AUTO_CONNECT'] = (
    '0'  # a thread of Ray Serve that outlives its cluster would begin another
)

import pytest

CACHE = 'vet-cache-of-tests-'
if CACHE not in os.environ.get('VET_CACHE_DIR', ''):  # child processes and workers of xdist inherit it
    os.environ['VET_CACHE_DIR'] = tempfile.mkdtemp(prefix=CACHE)

os.fsync = lambda handle: None  # no test cuts the power

for _signal, _default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    # as in the background of a shell; child processes would inherit that
    if signal.getsignal(_signal) == signal.SIG_IGN:
        signal.signal(_signal, _default)

ROOT = Path(__file__).parents[1]
QUICK = {'train.max_epochs': 1, 'train.log_every': 5, 'evaluation.report': False}


def pytest_unconfigure(config):
    """Deletes the cache of this session, after the workers of xdist have ended."""
    if not hasattr(config, 'workerinput'):
        shutil.rmtree(os.environ['VET_CACHE_DIR'], ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """Python's collector of cycles need not look again and again at modules and at tests: neither while
    they are imported, nor later.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One process runs all tests of the contract suite, because they look at the same trainings."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return 'tests/contract' if nodeid.startswith('tests/contract/') else super()._split_scope(nodeid)

    return ByFile(config, log) if config.getvalue('dist') == 'loadfile' else None


@pytest.fixture(scope='session', autouse=True)
def _one_thread_no_clock_and_a_log():
    """The process of xdist that only hands out the tests imports this file too, but never comes here. So
    that process imports neither torch nor vet, which takes seconds.
    """
    import torch

    from vet.engine.fast import routes
    from vet.log import show_log

    torch.set_num_threads(1)  # the nets are too small to share out
    routes.clock = lambda: 0.0  # no test depends on a time: the rule's route wins each comparison
    routes.ROUNDS = 1
    show_log()  # tests read the lines of progress


@pytest.fixture(autouse=True)
def _same_handlers():
    """A command that a test calls in this process sets handlers of signals for the rest of the process. The
    next test that interrupts a run would end pytest.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def no_pause(monkeypatch):
    """Within, a pause by the clock is a fault: a client that tries again and again pauses between its
    tries.
    """

    def refuse(seconds):
        raise AssertionError(f'the code pauses for {seconds} seconds')

    monkeypatch.setattr(time, 'sleep', refuse)


@pytest.fixture(scope='session')
def process():
    """process(target, *args): a started child, forked from a server that has imported vet but computed
    nothing.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['tests.engine.runs', 'tests.benchmark.runs', 'torch.utils.tensorboard'])

    def start(target, *args):
        child = context.Process(target=target, args=args)
        child.start()
        return child

    return start


@pytest.fixture(scope='session')
def trainer(tmp_path_factory):
    """A trainer that has trained the quickstart for one epoch. Look at it and its folder, change only
    copies.
    """
    from vet import build_trainer

    trainer = build_trainer(
        model=ROOT / 'configs/quickstart.py',
        work_dir=tmp_path_factory.mktemp('quickstart') / 'work',
        cfg_options=QUICK | {'evaluation.report': True},
        device='cpu',
    )
    trainer.summary = trainer.train()
    return trainer


@pytest.fixture(scope='session')
def python(tmp_path_factory):
    """python(*args, cwd=…, **environment): a finished fresh process, with vet but nothing else of this
    one.
    """

    def run(*args, cwd=None, **environment):
        own = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', **environment}
        return subprocess.run(
            [sys.executable, *map(str, args)],
            cwd=cwd or tmp_path_factory.mktemp('cwd'),
            env=own,
            capture_output=True,
            text=True,
            timeout=900,
        )

    return run
