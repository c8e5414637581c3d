"""PACE against its equations: the update, the noise, and the loss of two passes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.engine.runs import small
from tests.nets import tiny
from tests.tuners.test_products import tuned
from vet.errors import NoSiteError
from vet.registry import TUNERS

SITE = 'blocks.1.attn.qkv'


@pytest.mark.parametrize('form', ['mul', 'add'])
def test_in_use_the_update_has_no_noise(form):
    backbone, tuner = tuned('vit', SITE, type='PACE', rank=3, form=form)
    backbone.double(), tuner.double()
    layer, delta = backbone.network.get_submodule(SITE), tuner.deltas[SITE.replace('.', '/')]
    W, b = layer.weight.detach(), layer.bias.detach()
    if form == 'mul':
        change, shift = W * (delta.B @ delta.A), (W @ delta.P @ delta.p).squeeze() + b * delta.b
    else:
        change, shift = delta.B @ delta.A, delta.b
    x = torch.randn(2, 5, W.shape[1], dtype=torch.float64)
    backbone.eval(), tuner.eval()
    assert torch.allclose(layer(x), F.linear(x, W + change, b + shift))


def test_noise_multiplies_the_update_of_each_image_and_channel():
    backbone, tuner = tuned('vit', SITE, type='PACE', rank=3, sigma=0.8, quiet=0)
    layer, delta = backbone.network.get_submodule(SITE), tuner.deltas[SITE.replace('.', '/')]
    x = torch.randn(2, 5, layer.in_features)
    with torch.no_grad():
        plain = F.linear(x, layer.weight, layer.bias)
        tuner.eval()
        added = layer(x) - plain
        tuner.train()
        torch.manual_seed(7)
        noisy = layer(x) - plain
    torch.manual_seed(7)
    noise = torch.randn(2, layer.out_features) * delta.sigma + 1
    assert torch.allclose(noisy, added * noise[:, None], atol=1e-4)
    assert delta.sigma == pytest.approx(0.8 * 3 / 4)  # the second of three blocks and the head


def test_noise_falls_with_depth_as_in_the_released_code():
    tuner = TUNERS.build(dict(type='PACE', sigma=1.2))
    theirs = [0, *torch.linspace(0, 1.2, 13).tolist()[-1:0:-1]]  # 12 blocks and the head
    assert [tuner.sigma_at(depth, 12) for depth in range(12)] == pytest.approx(theirs[:12])


def test_a_step_has_the_loss_of_both_terms(tmp_path, monkeypatch):
    entry = dict(type='PACE', rank=2, sigma=0.7, weight=3.0, quiet=0)
    trainer = small(tmp_path, **{'model.tuners': [entry], 'model.backbone': dict(type='DigitsViT')})
    for parameter in trainer.model.tuners.parameters():
        nn.init.normal_(parameter, std=0.05)
    given, outputs, losses, labels = [], [], [], []
    backward = trainer.accelerator.backward
    monkeypatch.setattr(
        trainer.accelerator, 'backward', lambda loss: (losses.append(loss.item()), backward(loss))
    )
    cross_entropy = F.cross_entropy

    def noted(outputs, targets, *rest, **options):
        labels.append(targets)
        return cross_entropy(outputs, targets, *rest, **options)

    monkeypatch.setattr('vet.losses.cross_entropy.F.cross_entropy', noted)

    def seen(module, inputs, output):
        given.append(inputs[0])
        outputs.append(output.detach())

    with trainer.model.register_forward_hook(seen):
        trainer.train()
    steps = [i for i, images in enumerate(given) if len(images) > 1 and torch.equal(*images.chunk(2))]
    assert len(steps) == len(losses) == 8  # each batch of the two epochs was shown twice
    of_training = [targets for targets in labels if len(targets) == len(given[steps[0]]) // 2]
    first, second = outputs[steps[0]].chunk(2)
    assert not torch.equal(first, second)
    wanted = cross_entropy(first, of_training[0]) + 3 * (first - second).square().sum(1).mean()
    assert losses[0] == pytest.approx(wanted.item(), rel=1e-5)


def test_the_term_is_the_squared_distance():
    tuner = TUNERS.build(dict(type='PACE', weight=2.0))
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    wanted = [2 * sum((a - b) ** 2 for a, b in zip(x, y)) for x, y in zip(first.tolist(), second.tolist())]
    assert tuner.consistency(first, second).tolist() == pytest.approx(wanted, rel=1e-5)
    assert TUNERS.build(dict(type='LoRA')).consistency is None


def test_convolutions_are_refused():
    with pytest.raises(NoSiteError, match='PACE needs a Linear that is called'):
        TUNERS.build(dict(type='PACE', at='weight')).attach(tiny('resnet'))


def test_the_count_on_vit_b16(count_on_vit_b16):
    sizes = [(2304, 768), (768, 768), (3072, 768), (768, 3072)]
    wanted = 12 * sum(10 * (out + 2 * inside) + 10 + out for out, inside in sizes)
    assert count_on_vit_b16(type='PACE', rank=10) == wanted
