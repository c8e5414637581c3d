"""Fixtures of the benchmark's tests: a campaign that nothing stopped."""

import pytest

from tests.benchmark.runs import campaign

TWO_SEEDS = 'seeds = [0, 1]'


@pytest.fixture(scope='session')
def unbroken(tmp_path_factory):
    """The folder of a campaign of two tuners and two seeds, made from end to end. Change only copies."""
    folder = tmp_path_factory.mktemp('unbroken')
    campaign(folder, more=TWO_SEEDS).run()
    return folder
