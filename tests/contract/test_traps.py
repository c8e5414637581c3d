"""Modules that a simpler reweight would get wrong: odd convolutions, attention that is never called,
BatchNorm.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import SwinTransformer

from tests.contract.runs import LABELS, differing, gradients, logits, snapshot, with_head
from tests.nets import SWIN, VIT, images, randomised, timm_net, tiny
from vet.backbones.roles import find_layout
from vet.core.backbone import Backbone, Preprocessing
from vet.core.site import Site
from vet.core.tuner import Tuner
from vet.errors import NoSiteError
from vet.registry import TUNERS


class AddZero(nn.Module):
    """(weight + 0, bias + 0): only the route through the module's own forward can change the output."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, weight, bias):
        return weight + self.scale * torch.ones_like(weight), None if bias is None else bias + self.scale


class ZeroEverywhere(Tuner):
    def tune(self, site: Site) -> None:
        self.reweight(site, AddZero())


def torchvision_swin() -> Backbone:
    network = SwinTransformer(
        [2, 2], embed_dim=16, depths=[2, 1], num_heads=[2, 2], window_size=[4, 4], stochastic_depth_prob=0.0
    )
    network.head = nn.Identity()
    return Backbone(
        network,
        find_layout(network),
        Preprocessing(size=(32, 32)),
        dict(type='test', name='torchvision swin'),
    )


ODD = {
    'Conv2dSame': lambda: timm_net('tf_efficientnet_lite0', 33, pad_type='same'),
    'StdConv2d': lambda: timm_net(
        'resnetv2_50', 33, layers=(1, 1, 1, 1), channels=(16, 16, 16, 16), conv_layer=std_conv()
    ),
    'BatchNorm': lambda: tiny('resnet'),
    'LayerNorm2d': lambda: tiny('convnext'),
}
UNCALLED = {
    'timm BEiT': lambda: timm_net('beit_base_patch16_224', **VIT),
    'timm SwinV2': lambda: timm_net('swinv2_tiny_window8_256', **SWIN),
    'torchvision Swin': torchvision_swin,
    'torchvision ViT': lambda: tiny('torchvision-vit'),
}


def std_conv() -> type[nn.Conv2d]:
    from timm.layers import StdConv2d

    return StdConv2d


@pytest.mark.parametrize('odd', ODD)
@pytest.mark.parametrize('at', ['weight', 'norm'])
def test_zero_delta_is_bit_equal_on_odd_modules(odd, at):
    backbone = randomised(ODD[odd]()).eval()
    x = images(2, 33)
    frozen = logits(backbone, x)
    tuner = ZeroEverywhere(at)
    tuner.attach(backbone)
    assert torch.equal(logits(backbone, x), frozen)
    with torch.no_grad():
        for _, parameter in tuner.trainable():
            parameter.fill_(0.05)
    assert not torch.allclose(logits(backbone, x), frozen, atol=1e-4)


@pytest.mark.parametrize('odd', ['Conv2dSame', 'StdConv2d'])
def test_odd_classes_are_really_there(odd):
    assert [m for m in ODD[odd]().network.modules() if type(m).__name__ == odd]


@pytest.mark.parametrize('odd', ['Conv2dSame', 'StdConv2d'])
def test_lora_on_odd_convolutions_equals_written_weights(odd):
    backbone = randomised(ODD[odd]())
    plain = copy.deepcopy(backbone.network).eval()
    lora = TUNERS.build(dict(type='LoRA', rank=2, alpha=3, at='weight'))
    lora.attach(backbone.eval())
    write_into(plain, lora)
    x = images(2, 33)
    assert torch.allclose(logits(backbone, x), logits(plain, x), rtol=1e-4, atol=1e-4)


def write_into(plain: nn.Module, lora: Tuner) -> None:
    """Random B in `lora`; W + (alpha / rank) B A in the plain network, by the parameters' own names."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, delta in lora.deltas.items():
            delta.B.normal_(0, 0.1)
            path = name.replace('/', '.')
            weight = plain.get_parameter(f'{path}_weight' if path.endswith('.in_proj') else f'{path}.weight')
            weight += ((lora.alpha or lora.rank) / lora.rank * delta.B @ delta.A).view_as(weight)


@pytest.mark.parametrize('net', UNCALLED)
@pytest.mark.parametrize('at', ['attn.qkv', 'attn.proj', 'weight'])
def test_lora_on_weights_that_no_module_call_reads_equals_written_weights(net, at):
    backbone = randomised(UNCALLED[net]())
    plain = copy.deepcopy(backbone.network).eval()
    lora = TUNERS.build(dict(type='LoRA', rank=2, alpha=3, at=at))
    model = with_head(backbone, [lora])
    frozen = logits(plain)
    assert torch.equal(logits(backbone), frozen)

    write_into(plain, lora)
    tuned = logits(backbone)
    assert (tuned - frozen).abs().max() > 1e-2
    assert torch.allclose(tuned, logits(plain), rtol=1e-5, atol=1e-5)
    grad_mode = backbone(images(6)).detach()  # nn.MultiheadAttention takes its fast path under no_grad only
    assert torch.allclose(grad_mode, tuned, rtol=1e-4, atol=1e-5)

    _, found = gradients(model.train(), images(6), LABELS)
    tuned_sites = {name: g for name, g in found.items() if name.startswith('tuners')}
    assert len(tuned_sites) == 2 * len(backbone.sites.find(at))
    assert all(gradient.abs().sum() > 0 for gradient in tuned_sites.values())


@pytest.mark.parametrize('net', UNCALLED)
def test_merged_weights_that_no_module_call_reads(net):
    backbone = randomised(UNCALLED[net]())
    lora = TUNERS.build(dict(type='LoRA', rank=2, at=['attn.qkv', 'attn.proj']))
    model = with_head(backbone, [lora])
    keys = list(backbone.network.state_dict())
    write_into(copy.deepcopy(backbone.network), lora)
    before = logits(model)
    merged = model.merge()
    assert list(merged.state_dict()) == keys
    assert torch.allclose(logits(model), before, rtol=1e-4, atol=1e-5)
    model.unmerge()
    assert torch.equal(logits(model), before)


def test_edit_of_what_flows_refuses_a_module_that_is_never_called():
    class AfterProj(Tuner):
        def tune(self, site: Site) -> None:
            self.after(site, nn.Identity())

    with pytest.raises(
        NoSiteError, match=r'AfterProj .*self_attention\.out_proj.* is never called.*MultiheadAttention'
    ):
        AfterProj('attn.proj').attach(tiny('torchvision-vit'))


def test_lora_dropout_refuses_a_projection_that_is_never_called():
    lora = TUNERS.build(dict(type='LoRA', rank=2, dropout=0.1))
    with pytest.raises(NoSiteError, match=r'LoRA needs .*dropout.*self_attention\.in_proj'):
        lora.attach(tiny('torchvision-vit'))


def norms(backbone: Backbone) -> dict[str, nn.BatchNorm2d]:
    return {name: m for name, m in backbone.network.named_modules() if isinstance(m, nn.BatchNorm2d)}


def test_frozen_batchnorm_stays_in_eval_and_keeps_its_statistics():
    backbone = tiny('resnet')
    state = snapshot(backbone.network)
    model = with_head(backbone, [TUNERS.build(dict(type='LoRA', rank=2, at='weight'))]).train()
    assert backbone.network.training and not any(norm.training for norm in norms(backbone).values())
    model(images(6))
    assert not differing(snapshot(backbone.network), state)


def test_batchnorm_whose_bias_alone_trains_keeps_its_statistics():
    backbone = tiny('resnet')
    model = with_head(backbone, [TUNERS.build(dict(type='BitFit'))]).train()
    state = snapshot(backbone.network)
    model(images(6))
    assert not differing(snapshot(backbone.network), state)


def test_trained_batchnorm_statistics_are_saved_and_restored():
    backbone = tiny('resnet')
    frozen = snapshot(backbone.network)
    model = with_head(backbone, [TUNERS.build(dict(type='Partial', blocks=1))]).train()
    training = {name for name, norm in norms(backbone).items() if norm.training}
    assert training == {name for name in norms(backbone) if name.startswith('layer4.0.')}
    model(images(6))
    changed = set(differing(snapshot(backbone.network), frozen))
    assert changed == {
        f'{name}.{leaf}'
        for name in training
        for leaf in ('running_mean', 'running_var', 'num_batches_tracked')
    }
    saved = {name.removeprefix('tuners.0.thawed.'): value for name, value in model.trained_state().items()}
    assert all(torch.equal(saved[name], backbone.network.state_dict()[name]) for name in changed)
    model.tuners[0].detach()
    assert not differing(snapshot(backbone.network), frozen)


def test_delta_sees_the_bias_too():
    backbone = tiny('vit').eval()
    plain = copy.deepcopy(backbone.network)
    tuner = ZeroEverywhere('blocks.1.mlp.fc1')
    tuner.attach(backbone)
    with torch.no_grad():
        tuner.deltas['blocks/1/mlp/fc1'].scale.fill_(0.3)
        plain.blocks[1].mlp.fc1.weight += 0.3
        plain.blocks[1].mlp.fc1.bias += 0.3
    assert torch.equal(logits(backbone), logits(plain))
    assert F.mse_loss(logits(backbone), logits(tiny('vit').eval())) > 1e-4
