"""The head that adds nothing to a kept classifier."""

import pytest
import torch

from vet.errors import UserError
from vet.registry import HEADS


def test_logits_are_the_backbones_in_float32():
    head, logits = (
        HEADS.build(dict(type='Pretrained', num_classes=4), in_features=4),
        torch.randn(2, 4).bfloat16(),
    )
    with torch.autocast('cpu', torch.bfloat16):
        given = head(logits)
    assert given.dtype == torch.float32 and torch.equal(given, logits.float())
    assert not list(head.parameters()) and not head.state_dict()


def test_other_numbers_than_the_classes_are_refused():
    with pytest.raises(
        UserError,
        match=r'gives 192 numbers per image, but the dataset has 2 classes.*model\.backbone\.classifier=True.*'
        r'label_map',
    ):
        HEADS.build(dict(type='Pretrained', num_classes=2), in_features=192)
