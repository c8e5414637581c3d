"""The door of the tricks for speed: tricks are entered in the order that the door lists, and all are taken back."""

from contextlib import contextmanager

import pytest
import torch

from tests.contract.runs import differing, leftovers, snapshot, with_head
from tests.nets import tiny
from vet.config import Train
from vet.core.model import ImageClassifier
from vet.engine.device import make_accelerator
from vet.engine.fast import door
from vet.engine.fast.door import Tricks
from vet.errors import UserError
from vet.registry import TUNERS

LISTED = ['fp8', 'weights', 'norms', 'lean', 'attention', 'recompute']


def model() -> ImageClassifier:
    return with_head(tiny('vit'), [TUNERS.build(dict(type='LoRA', rank=2))]).train()


@pytest.fixture
def entered(monkeypatch):
    """The names of tricks, in the order in which they are entered."""
    names = []

    def recorded(name, enter):
        @contextmanager
        def trick(*args):
            names.append(name)
            with enter(*args):
                yield

        return trick

    for name, function in (
        ('fp8', 'products_in_fp8'),
        ('weights', 'weights_stored_in'),
        ('norms', 'norm_inputs_kept_in'),
        ('attention', 'AttentionByProducts'),
        ('recompute', 'blocks_recomputed'),
    ):
        monkeypatch.setattr(door, function, recorded(name, getattr(door, function)))
    monkeypatch.setattr(ImageClassifier, 'features_only', recorded('lean', ImageClassifier.features_only))
    monkeypatch.setattr(door, 'is_faster_by_products', lambda device: True)
    return names


def test_tricks_are_entered_in_the_order_of_the_list(entered):
    tuned = model()
    before = snapshot(tuned)
    train = Train(precision='fp8', gradient_checkpointing=True)
    tricks = Tricks(tuned, train, make_accelerator('cpu', 'fp8'))
    entered.clear()  # the network was asked whether it has blocks
    marked = leftovers(tuned)
    with tricks.while_training():
        assert entered == LISTED[:3]
        for _ in range(2):
            with tricks.in_a_step():
                pass
    assert entered == LISTED + LISTED[3:]
    assert not differing(before, snapshot(tuned)) and leftovers(tuned) == marked


@pytest.mark.parametrize(
    'settings, expected',
    [
        (dict(precision='fp32'), ['lean']),
        (dict(precision='fp32', shortcuts=False), []),
        (dict(precision='bf16'), ['weights', 'norms', 'lean', 'attention']),
        (dict(precision='bf16', shortcuts=False), ['weights', 'norms']),
        (dict(precision='bf16', compile=True), ['weights', 'norms', 'lean']),
    ],
    ids=str,
)
def test_each_setting_has_its_tricks(settings, expected, entered):
    tricks = Tricks(model(), Train(**settings), make_accelerator('cpu', settings['precision']))
    with tricks.while_training(), tricks.in_a_step():
        assert entered == expected


def test_a_network_is_what_it_was_when_a_step_fails(entered):
    tuned = model()
    before, marked = snapshot(tuned), leftovers(tuned)
    tricks = Tricks(tuned, Train(precision='bf16'), make_accelerator('cpu', 'bf16'))
    with pytest.raises(ZeroDivisionError), tricks.while_training(), tricks.in_a_step():
        assert any(p.dtype == torch.bfloat16 for p in tuned.parameters())
        raise ZeroDivisionError
    assert not differing(before, snapshot(tuned)) and leftovers(tuned) == marked


def test_settings_that_do_not_fit_each_other_are_refused():
    with pytest.raises(UserError, match='train.gradient_checkpointing and train.compile are both on'):
        Tricks(model(), Train(gradient_checkpointing=True, compile=True), make_accelerator('cpu'))
