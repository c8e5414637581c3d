"""A transposed convolution keeps its weight as (in, out / groups, …): every delta must still act on outputs.

Each equation is checked against the layer's own outputs, where the channels are at axis 1 whatever its weight is.
"""

import copy

import pytest
import torch
from torch import nn

from tests.contract.runs import logits, with_head
from tests.nets import images, timm_net
from vet.backbones.roles import find_layout
from vet.core.backbone import Backbone, Preprocessing
from vet.core.output_first import output_first
from vet.errors import NoSiteError
from vet.registry import TUNERS

GROUPS = [1, 2, 4]


def backbone_of(network: nn.Module) -> Backbone:
    return Backbone(network, find_layout(network), Preprocessing(size=(32, 32)), dict(type='test', name='up'))


class UpBlock(nn.Module):
    """8 channels to 12 at twice the resolution."""

    def __init__(self, groups: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 12, 4, stride=2, padding=1, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(x)


class Net(nn.Module):
    def __init__(self, groups: int):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.block = UpBlock(groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.stem(x)).mean((2, 3))


def tuned(groups: int, noise: float = 0.3, **config: object):
    """The transposed convolution as it was, the tuned one, and its delta with random numbers, and the backbone."""
    torch.manual_seed(0)
    network = Net(groups)
    plain = copy.deepcopy(network.block.up)
    backbone = backbone_of(network)
    tuner = TUNERS.build(dict(config, at='block.up'))
    tuner.attach(backbone)
    with torch.no_grad():
        for _, parameter in tuner.trainable():
            parameter.add_(noise * torch.randn_like(parameter))
    return plain, network.block.up, tuner.deltas['block/up'], backbone


def maps(channels: int = 8) -> torch.Tensor:
    return torch.randn(2, channels, 5, 5, generator=torch.Generator().manual_seed(1))


def by_channel(values: torch.Tensor) -> torch.Tensor:
    return values[None, :, None, None]


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('groups', GROUPS)
def test_ssf_scales_and_shifts_the_outputs(groups):
    plain, layer, delta, _ = tuned(groups, type='SSF')
    x = maps()
    assert len(delta.gamma) == len(delta.beta) == 12
    assert close(layer(x), by_channel(delta.gamma) * plain(x) + by_channel(delta.beta))


@pytest.mark.parametrize('groups', GROUPS)
def test_ia3_scales_the_inputs(groups):
    plain, layer, delta, _ = tuned(groups, type='IA3')
    x = maps()
    assert len(delta.gamma) == 8
    assert close(layer(x), plain(by_channel(delta.gamma) * x))


@pytest.mark.parametrize('groups', GROUPS)
def test_rlrr_scales_by_outputs_and_inputs(groups):
    """W + (s_left s_right') * W is, of one output channel o, a convolution of the inputs scaled by 1 + l_o r."""
    plain, layer, delta, _ = tuned(groups, type='RLRR')
    x = maps()
    right = delta.right.repeat(1, groups)[0]  # the inputs of each group share s_right
    outputs = [plain(by_channel(1 + delta.left[o] * right) * x)[:, o] + delta.f[o] for o in range(12)]
    assert close(layer(x), torch.stack(outputs, 1))


@pytest.mark.parametrize('groups', GROUPS)
def test_lora_has_the_closed_count_and_a_low_rank_of_each_output(groups):
    plain, layer, delta, _ = tuned(groups, type='LoRA', rank=2)
    inside = 8 // groups * 16
    assert sum(parameter.numel() for parameter in delta.parameters()) == 2 * (12 + inside)
    update = output_first(plain, delta.forward(output_first(plain, plain.weight), None)[0]) - plain.weight
    written = copy.deepcopy(plain)
    with torch.no_grad():
        written.weight += update
    assert close(layer(maps()), written(maps()))
    assert torch.linalg.matrix_rank(output_first(plain, update).flatten(1)) == 2


@pytest.mark.parametrize('groups', GROUPS)
def test_dora_measures_the_norm_of_each_output(groups):
    plain, _, delta, _ = tuned(groups, noise=0, type='LoRA', variant='dora', rank=2)
    share = 12 // groups
    by_group = plain.weight.unflatten(0, (groups, -1))  # (groups, in / groups, out / groups, kH, kW)
    norms = [by_group[o // share, :, o % share].norm() for o in range(12)]
    assert torch.allclose(delta.m, torch.stack(norms))


@pytest.mark.parametrize('stride', [1, 2])
def test_repadapter_acts_on_the_input_of_a_pointwise_one(stride):
    torch.manual_seed(0)
    network = Net(1)
    network.block.up = nn.ConvTranspose2d(8, 12, 1, stride)
    plain = copy.deepcopy(network.block.up)
    backbone = backbone_of(network)
    tuner = TUNERS.build(dict(type='RepAdapter', at='block.up'))
    if stride == 2:  # between the strides stands the bias alone, which could not take up the shift
        with pytest.raises(NoSiteError, match='RepAdapter needs'):
            tuner.attach(backbone)
        return
    tuner.attach(backbone)
    with torch.no_grad():
        for _, parameter in tuner.trainable():
            parameter.normal_()
    (A, B), shift = tuner.deltas['block/up'].factors(), tuner.deltas['block/up'].shift()
    x = maps()
    moved = x + ((x.movedim(1, -1) @ A.T) @ B.T + (0 if shift is None else shift)).movedim(-1, 1)
    assert close(network.block.up(x), plain(moved))


@pytest.mark.parametrize('type', ['SSF', 'RLRR', 'IA3', 'LoRA', 'LoHa', 'LoKr', 'GPS', 'AdaLoRA', 'DyLoRA'])
@pytest.mark.parametrize('groups', [1, 2])
def test_merged_equals_tuned_and_weights_come_back(type, groups):
    torch.manual_seed(0)
    network = Net(groups)
    plain = copy.deepcopy(network)
    model = with_head(backbone_of(network), [TUNERS.build(dict(type=type, at='block.up'))])
    with torch.no_grad():
        for _, parameter in model.tuners[0].trainable():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = images(2)
    tuned = logits(model, x)
    merged = model.merge()
    assert close(logits(model, x), tuned)
    assert (
        merged.block.up.weight.is_contiguous() and merged.block.up.weight.shape == plain.block.up.weight.shape
    )
    assert not torch.allclose(merged.block.up.weight, plain.block.up.weight)
    model.unmerge()
    assert torch.equal(logits(model, x), tuned)
    model.tuners[0].detach()
    assert torch.equal(network(x), plain(x))


def test_a_weight_is_turned_and_turned_back():
    layer = nn.ConvTranspose2d(8, 12, 3, groups=4)
    turned = output_first(layer, layer.weight)
    assert turned.shape == (12, 2, 3, 3) and torch.equal(output_first(layer, turned), layer.weight)
    assert torch.equal(turned[5], layer.weight[2:4, 2])  # output 5 is the last of the second group, of 3
    conv = nn.Conv2d(8, 12, 3)
    assert output_first(conv, conv.weight) is conv.weight


def test_lowformer_takes_every_reweight():
    backbone = timm_net('lowformer_b0', 64)
    assert any(isinstance(module, nn.ConvTranspose2d) for module in backbone.network.modules())
    for type in ('SSF', 'RLRR'):
        tuner = TUNERS.build(dict(type=type))
        tuner.attach(backbone)
        assert backbone.eval()(images(1, 64)).isfinite().all()
        tuner.detach()
