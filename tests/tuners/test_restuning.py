"""Res-Tuning-Bypass against its equation in float64, its start, and the memory and the backward pass it saves."""

import math

import pytest
import torch

from tests.nets import images, tiny, tuned
from vet.errors import NoSiteError, UserError
from vet.registry import TUNERS


def steps(tuner):
    """The deltas that hold the adapters. The first block has a delta before and a delta after."""
    return [tuner.deltas[name] for name in ('blocks/0#1', 'blocks/1', 'blocks/2')]


def expected(network, tuner, x):
    """The bypass beside the blocks of a tiny ViT, one after the other."""

    def adapter(of, x):
        h = x @ of.down.weight.T + of.down.bias
        return x + (h * (1 + torch.erf(h / math.sqrt(2))) / 2) @ of.up.weight.T + of.up.bias

    b = x
    for block, step in zip(network.blocks, steps(tuner)):
        x = block(x)
        b = adapter(step.lateral, x) + adapter(step.vertical, b)
    return b


def through(network, x):
    for block in network.blocks:
        x = block(x)
    return x


def test_the_bypass_replaces_the_output_of_the_last_block():
    backbone, tuner = tuned('vit', type='ResTuningBypass', width=3)
    x = torch.randn(2, 17, 32, dtype=torch.float64)
    wanted = expected(tiny('vit').eval().double().network, tuner, x)
    assert torch.allclose(through(backbone.network, x), wanted, atol=1e-12)


def test_tokens_of_other_tuners_pass():
    backbone, tuner = tuned('vit', type='ResTuningBypass', width=3)
    plain = tiny('vit').eval().double().network
    x = torch.randn(2, 19, 32, dtype=torch.float64)  # 17, and two behind
    x[:, 17:] = 0
    found = through(backbone.network, x)
    assert torch.equal(found[:, 17:], through(plain, x)[:, 17:])
    kept = x
    bypass = x[:, :17]
    for block, step in zip(plain.blocks, steps(tuner)):
        kept = block(kept)
        bypass = step.lateral(kept[:, :17]) + step.vertical(bypass)
    assert torch.allclose(found[:, :17], bypass, atol=1e-12)


def test_the_start_is_xaviers():
    torch.manual_seed(0)
    tuner = TUNERS.build(dict(type='ResTuningBypass', width=16))
    tuner.attach(tiny('vit'))
    bound = math.sqrt(6 / (32 + 16))
    weights = torch.cat(
        [p.flatten() for name, p in tuner.named_parameters() if name.endswith('weight')]
    ).detach()
    assert weights.abs().max() <= bound and weights.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    biases = torch.cat([p.flatten() for name, p in tuner.named_parameters() if name.endswith('bias')])
    assert 0 < biases.abs().max() < 1e-5


def test_the_blocks_need_no_backward_pass():
    backbone, tuner = tuned('vit', type='ResTuningBypass', width=3)
    seen = []
    for block in backbone.network.blocks:
        block.attn.register_forward_hook(lambda module, args, y: seen.append(y.requires_grad))
    assert backbone(images(2).double()).requires_grad
    assert seen == [False] * 3


def test_count_on_vit_b16(count_on_vit_b16):
    assert count_on_vit_b16(type='ResTuningBypass') == 12 * 2 * (2 * 768 * 32 + 32 + 768) == 1_198_848


@pytest.mark.parametrize(
    'config, family, error, text',
    [
        (dict(width=0), 'vit', UserError, 'width is 0'),
        (
            dict(),
            'swin',
            NoSiteError,
            r'ResTuningBypass needs a block of tokens \(N, C\), the same in and out',
        ),
        (dict(), 'resnet', NoSiteError, 'ResTuningBypass needs a block of tokens'),
    ],
    ids=str,
)
def test_refusals(config, family, error, text):
    with pytest.raises(error, match=text):
        TUNERS.build(dict(type='ResTuningBypass', **config)).attach(tiny(family))
