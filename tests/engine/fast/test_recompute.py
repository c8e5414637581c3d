"""Gradient checkpointing: the same gradients, less kept; and no trace of it after training."""

import copy

import pytest
import torch

from tests.contract.cases import CASES
from tests.contract.runs import LABELS, Run, gradients, run, trained, widest, with_head
from tests.engine.runs import small
from tests.nets import images, tiny
from vet.engine.fast.recompute import blocks_recomputed
from vet.errors import UserError
from vet.registry import TUNERS


def kept(model) -> int:
    """Bytes that are kept for the backward pass, each storage once."""
    found = {}

    def keep(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images(6))
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize(
    'case',
    [
        pytest.param(case, id=str(case), marks=[] if case in widest().values() else pytest.mark.slow)
        for case in CASES
        if case.on is None or 'vit' in case.on
    ],
)
def test_gradients_are_the_same(case):
    if not isinstance(run(case, 'vit'), Run):
        pytest.skip('refuses')
    model = trained(case, 'vit').train()
    again = copy.deepcopy(model)
    torch.manual_seed(0)
    loss, plain = gradients(model, images(6), LABELS)
    torch.manual_seed(0)
    with blocks_recomputed(again):
        found_loss, found = gradients(again, images(6), LABELS)
    assert found_loss == loss and found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_less_is_kept():
    model = trained(next(case for case in CASES if str(case) == 'LoRA'), 'vit').train()
    plain = kept(model)
    with blocks_recomputed(model):
        assert kept(model) < plain / 2
    assert kept(model) == plain


def test_a_run_ends_with_the_same_weights_and_leaves_nothing(tmp_path):
    options = {'train.max_epochs': 1, 'model.tuners': [dict(type='LoRA', rank=4, dropout=0.3)]}
    plain, again = (
        small(tmp_path / str(on), **options, **{'train.gradient_checkpointing': on}) for on in (False, True)
    )
    for trainer in (plain, again):
        trainer.train()
        assert 'forward' not in vars(trainer.model.backbone.network.blocks[0])
    states = [trainer.model.trained_state() for trainer in (plain, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize('family', ['resnet', 'torchvision-vit', 'vgg', 'convnext'])
def test_every_network_with_blocks_has_it(family):
    model = trained(next(case for case in CASES if str(case) == 'LoRA-weight'), family).train()
    _, plain = gradients(model, images(6), LABELS)
    whole = kept(model)
    with blocks_recomputed(model):
        _, again = gradients(model, images(6), LABELS)
        assert kept(model) < whole
    assert all(torch.equal(again[name], plain[name]) for name in plain)


def test_networks_without_blocks_are_refused():
    model = trained(next(case for case in CASES if str(case) == 'BitFit'), 'resnet')
    model.backbone.sites.blocks = []
    with (
        pytest.raises(
            UserError,
            match='ResNet has no blocks that could be computed again. Set train.gradient_checkpointing to False',
        ),
        blocks_recomputed(model),
    ):
        pass


@pytest.mark.parametrize('tuner', ['Full', 'NormTune'])
def test_statistics_are_counted_once(tuner):
    model = trained(next(case for case in CASES if str(case) == tuner), 'resnet').train()
    again = copy.deepcopy(model)
    for x in images(12, seed=5).split(6):
        _, plain = gradients(model, x, LABELS)
        with blocks_recomputed(again):
            _, found = gradients(again, x, LABELS)
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    buffers, others = dict(model.backbone.named_buffers()), dict(again.backbone.named_buffers())
    assert any(name.endswith('num_batches_tracked') for name in buffers)
    assert all(torch.equal(others[name], buffers[name]) for name in buffers)


def test_a_tuner_at_a_container_of_blocks_trains():
    """timm's own mode calls the blocks past the container, so that no hook of the container is called."""
    backbone = tiny('resnet')
    model = with_head(backbone, [TUNERS.build(dict(type='Adapter', at='layer?', width=2))]).train()
    _, plain = gradients(model, images(6), LABELS)
    with blocks_recomputed(model):
        _, again = gradients(model, images(6), LABELS)
    assert any(value.abs().sum() > 0 for name, value in again.items() if name.startswith('tuners'))
    assert all(torch.equal(again[name], plain[name]) for name in plain)
