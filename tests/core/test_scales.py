"""Scale: where gamma and beta start."""

import torch

from vet.core.scales import Scale


def test_a_scale_starts_as_the_identity():
    scale = Scale(4, shift=True)
    assert torch.equal(scale.gamma, torch.ones(4)) and torch.equal(scale.beta, torch.zeros(4))
    assert Scale(4).beta is None


def test_the_noise_of_a_start_has_the_std_asked_for():
    torch.manual_seed(0)
    scale = Scale(10_000, shift=True, std=0.5)
    assert abs(scale.gamma.std() - 0.5) < 0.02 and abs(scale.gamma.mean() - 1) < 0.02
    assert abs(scale.beta.std() - 0.5) < 0.02 and abs(scale.beta.mean()) < 0.02
