"""Fixtures of the engine's tests: tuners of a test's own, a cache folder, a folder of images, and
torch's switches put back.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from vet.registry import TUNERS


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


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('VET_CACHE_DIR', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture(scope='module')
def jpegs(tmp_path_factory):
    """A folder of train/ and test/, each with two classes of JPEGs of as many sizes as images."""
    root, draw = tmp_path_factory.mktemp('jpegs'), np.random.default_rng(0)
    for split, images in (('train', 12), ('test', 6)):
        for number, name in enumerate('ab'):
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                pixels = draw.integers(0, 256, (3 + number, 4, 3), np.uint8)
                Image.fromarray(pixels).resize((18 + i, 30 - i)).save(root / split / name / f'{i}.jpg')
    return root
