"""torch.compile and gradient checkpointing on a tuned ViT."""

import pytest
import torch

from tests.contract.cases import CASES, AfterBlocks, Case
from tests.contract.runs import LABELS, Run, classifier, gradients, logits, run, trained, with_head
from tests.nets import images, tiny
from vet.registry import TUNERS

DEFAULT = {'LoRA-qv'}  # each compilation takes a second


def on_vit(slow_others: bool = False) -> list:
    cases = [case for case in CASES if case.on is None or 'vit' in case.on]
    return [
        pytest.param(
            case, id=str(case), marks=pytest.mark.slow if slow_others and str(case) not in DEFAULT else []
        )
        for case in cases
    ]


def trained_on_vit(case: Case):
    if not isinstance(run(case, 'vit'), Run):
        pytest.skip('refuses')
    return trained(case, 'vit')


def compiled(model):
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend='aot_eager')


@pytest.mark.parametrize('case', on_vit(slow_others=True))
def test_compiled_in_one_graph_equals_eager(case):
    model = trained_on_vit(case)
    fast = compiled(model)
    assert torch.allclose(logits(fast), logits(model), rtol=1e-5, atol=1e-5)
    loss, found = gradients(model, images(6), LABELS)
    loss_compiled = torch.nn.functional.cross_entropy(fast(images(6)), LABELS)
    names, parameters = zip(*model.trainable().items())
    for name, gradient in zip(names, torch.autograd.grad(loss_compiled, parameters)):
        assert torch.allclose(gradient, found[name], rtol=1e-4, atol=1e-5), name


def moved(config, backbone):
    """A tuner on the backbone, away from its start."""
    tuner = TUNERS.build(config)
    tuner.attach(backbone)
    with torch.no_grad():
        for _, parameter in tuner.trainable():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return tuner


@pytest.mark.parametrize(
    'config',
    [
        pytest.param(dict(type='LoRA', at='weight', rank=2), id='reweight'),
        pytest.param(dict(type='BitFit'), id='thaw', marks=pytest.mark.slow),
        pytest.param(dict(type=AfterBlocks), id='after', marks=pytest.mark.slow),
    ],
)
def test_edits_after_compile_are_seen_by_the_compiled_model(config):
    torch.manual_seed(0)
    backbone = tiny('vit').eval()
    fast = compiled(backbone)
    frozen = logits(fast)
    tuner = moved(config, backbone)
    tuned = logits(backbone)
    assert (tuned - frozen).abs().max() > 1e-2
    assert torch.allclose(logits(fast), tuned, rtol=1e-5, atol=1e-5)
    tuner.detach()
    assert torch.allclose(logits(fast), frozen, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    'config',
    [
        pytest.param(dict(type='Adapter', width=2), id='Adapter'),
        pytest.param(dict(type='VPT', length=2), id='VPT', marks=pytest.mark.slow),
        pytest.param(dict(type='LoRA', rank=2), id='LoRA'),
        pytest.param(dict(type='BitFit'), id='BitFit', marks=pytest.mark.slow),
    ],
)
def test_no_edit_is_hidden_by_a_graph_that_was_made_before(config):
    """A graph's guards look at no hook: without a reset, a compiled network goes on as if nobody had
    edited it.
    """
    torch.manual_seed(0)
    backbone = tiny('vit').eval()
    torch.compiler.reset()
    fast = torch.compile(backbone, backend='eager')
    frozen = logits(fast)
    tuner = moved(config, backbone)
    tuned = logits(backbone)
    assert (tuned - frozen).abs().max() > 1e-3
    torch.testing.assert_close(logits(fast), tuned)
    tuner.detach()
    torch.testing.assert_close(logits(fast), frozen)


@pytest.mark.slow
def test_merge_after_compile_counts_the_update_once():
    model = trained(next(case for case in CASES if case.label == 'weight'), 'vit')
    fast = compiled(model)
    unmerged = logits(fast)
    model.merge()
    assert torch.allclose(logits(fast), unmerged, rtol=1e-4, atol=1e-5)
    model.unmerge()
    assert torch.allclose(logits(fast), unmerged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('case', on_vit())
def test_gradient_checkpointing_gives_the_same_gradients(case):
    model = trained_on_vit(case).eval()
    _, plain = gradients(model, images(6), LABELS)
    model.backbone.network.set_grad_checkpointing(True)
    _, again = gradients(model, images(6), LABELS)
    assert all(torch.allclose(again[name], plain[name], rtol=1e-5, atol=1e-7) for name in plain)
    assert len(plain) == len(model.trainable())


@pytest.mark.slow
def test_attaching_a_stack_after_compile_equals_the_same_stack_in_eager():
    backbone = tiny('vit').eval()
    fast = compiled(backbone)
    logits(fast)
    with_head(backbone, [TUNERS.build(dict(type='Full')), TUNERS.build(dict(type='LoRA', rank=2))])
    backbone.eval()
    with torch.no_grad():
        backbone.network.norm.weight.mul_(2.0)
    assert torch.allclose(logits(fast), logits(backbone), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(fast), logits(classifier(CASES[0], 'vit').backbone), atol=1e-2)


@torch.no_grad()
def test_a_forward_written_after_compile_is_seen_once_the_network_is_called_without_the_graph():
    """docs/library.md says so."""
    backbone = tiny('vit').eval()
    moved(dict(type='LoRA', at='mlp.fc1', rank=2), backbone)
    network = backbone.network
    torch.compiler.reset()
    graph = torch.compile(network, backend='eager')
    graph(images(2))
    layer = network.blocks[0].mlp.fc1
    layer.forward = lambda x: 2 * torch.nn.Linear.forward(layer, x)
    expected = network(images(2))
    torch.testing.assert_close(graph(images(2)), expected)
