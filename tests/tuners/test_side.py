"""Side networks against their equation written out in float64; what they save for the backward pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.nets import images, tiny
from vet.core.backbone import Backbone
from vet.core.tuner import Tuner
from vet.errors import NoSiteError, UnknownNameError, UserError
from vet.registry import TUNERS

SMALL = dict(
    type='timm', name='resnet18', pretrained=False, kwargs=dict(layers=(1, 1, 1, 1), channels=(4, 4, 8, 8))
)


def tuned(family: str, **config: object) -> tuple[Backbone, Tuner]:
    torch.manual_seed(0)
    backbone, tuner = tiny(family).eval(), TUNERS.build(config)
    tuner.attach(backbone)
    return backbone, tuner


def fcn4(layers: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The four stages by unfolding, the norm by hand."""
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in layers if isinstance(layer, nn.GroupNorm)]
    for conv, norm, stride, padding in zip(convs, norms, (1, 2, 2, 1), (1, 0, 0, 0), strict=True):
        side = (x.shape[-1] + 2 * padding - 3) // stride + 1
        x = (conv.weight.flatten(1) @ F.unfold(x, 3, padding=padding, stride=stride)).unflatten(
            -1, (side, side)
        )
        halves = [
            (half - half.mean((1, 2, 3), keepdim=True))
            / (half.var((1, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
            for half in x.chunk(2, 1)
        ]
        x = torch.cat(halves, 1) * norm.weight[:, None, None] + norm.bias[:, None, None]
        x = x * (x > 0)
    return x.mean((2, 3)) @ layers[-1].weight.T + layers[-1].bias


@pytest.mark.parametrize('family', ['vit', 'resnet', 'swin'])
def test_features_are_a_learned_share_of_both(family):
    backbone, tuner = tuned(family, type='SideTuning')
    backbone.double(), tuner.double()
    delta = tuner.deltas['backbone']
    with torch.no_grad():
        delta.a.fill_(0.8)
        for layer in delta.side:
            if isinstance(layer, nn.GroupNorm):
                layer.weight.normal_(), layer.bias.normal_()
    x, share = images(3).double(), 1 / (1 + torch.exp(torch.tensor(-0.8, dtype=torch.float64)))
    expected = share * tiny(family).eval().double()(x) + (1 - share) * fcn4(delta.side, x)
    assert torch.allclose(backbone(x), expected, rtol=0, atol=1e-8)


def test_starts_half_and_half():
    backbone, tuner = tuned('vit', type='SideTuning')
    x, delta = images(2), tuner.deltas['backbone']
    assert torch.allclose(backbone(x), (tiny('vit').eval()(x) + delta.side(x)) / 2, atol=1e-6)


def test_a_backbone_serves_as_side_and_trains_whole():
    backbone, tuner = tuned('vit', type='SideTuning', side=SMALL)
    side = tuner.deltas['backbone'].side
    names = dict(tuner.trainable())
    assert len(names) == len(list(side.parameters())) + 1
    backbone.train(), tuner.train()
    backbone(images(4)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in names.values())
    assert not any(parameter.grad is not None for parameter in backbone.parameters())
    assert any(name.endswith('bn1.running_mean') and value.any() for name, value in tuner.state().items())
    x = images(2)
    backbone.eval(), tuner.eval()
    with torch.no_grad():
        expected = (tiny('vit').eval()(x) + side.backbone.network(x) @ side.fc.weight.T) / 2
        assert torch.allclose(backbone(x), expected, atol=1e-5)


def saved_bytes(run) -> int:
    """The bytes that `run` saves for a backward pass."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel() * t.element_size()) or t, lambda t: t
    ):
        run()
    return sum(sizes)


@pytest.mark.parametrize('family', ['vit', 'resnet'])
def test_no_gradient_passes_through_the_backbone(family):
    backbone, tuner = tuned(family, type='SideTuning')
    x = images(4)
    features = tiny(family).eval()(x).detach()
    alone = saved_bytes(lambda: tuner.deltas['backbone'](x, features))
    assert saved_bytes(lambda: backbone(x)) == alone > 0
    behind_blocks, _ = tuned(family, type='Adapter', at='block')
    assert saved_bytes(lambda: behind_blocks(x)) > saved_bytes(lambda: tiny(family).eval()(x)) == 0


def test_count_on_vit_b16(count_on_vit_b16):
    assert count_on_vit_b16(type='SideTuning') == 75_953


@pytest.mark.parametrize(
    'side, error, text',
    [
        (
            'fcn5',
            UserError,
            r"side is 'fcn5'; it must be 'fcn4' or a dict with a .type. of those that `vet list backbones` shows",
        ),
        (dict(type='tim'), UnknownNameError, r"unknown backbone 'tim'. Did you mean 'timm'"),
        (
            dict(type='timm', name='vit_tiny_patch16_224', pretrained=False),
            NoSiteError,
            r"SideTuning needs images that its side network takes .*, but 'the backbone' \(VisionTransformer, which takes \(3, 32, 32\)",
        ),
    ],
    ids=str,
)
def test_refusals(side, error, text):
    with pytest.raises(error, match='(?s)' + text):
        TUNERS.build(dict(type='SideTuning', side=side)).attach(tiny('vit'))
