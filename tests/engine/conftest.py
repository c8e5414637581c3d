"""Fixtures of the engine's tests: tuners of a test's own, and torch's switches put back."""

import pytest
import torch

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
