"""The description of a network: buffers are compared with room for the rounding of other processors."""

import torch

from vet.core.description import _fingerprint, differing_buffers


def differs(one, other):
    return differing_buffers(dict(positions=_fingerprint(one)), dict(positions=_fingerprint(other))) != []


def test_rounding_is_no_difference_and_one_wrong_number_is():
    positions = torch.arange(997.0).cos()
    assert not differs(positions, positions + 3e-7)
    wrong = positions.clone()
    wrong[500] += 0.01
    assert differs(positions, wrong)
    assert differs(positions, positions.flip(0))
    assert differs(positions, positions.double())
    assert differs(positions, positions[None])
