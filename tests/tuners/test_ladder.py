"""The ladder against its equation written out in float64; what it saves for the backward pass; threads."""

import math
import threading

import pytest
import torch
from torch import nn

from tests.nets import VIT, images, timm_net, tiny
from vet.core.backbone import Backbone
from vet.core.tuner import Tuner
from vet.errors import NoSiteError, UserError
from vet.registry import TUNERS


def tuned(family: str) -> tuple[Backbone, Tuner]:
    torch.manual_seed(0)
    backbone, tuner = tiny(family).eval(), TUNERS.build(dict(type='LadderSide', reduction=4, heads=2))
    tuner.attach(backbone)
    return backbone, tuner


def saved_bytes(run) -> int:
    """The bytes that `run` saves for a backward pass."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel() * t.element_size()) or t, lambda t: t
    ):
        run()
    return sum(sizes)


def ladder(delta: nn.Module, rungs: list[torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    """s_i = T_i(m_i D_i b_i + (1 - m_i) s_{i-1}), by hand."""

    def linear(layer, x):
        return x @ layer.weight.T + layer.bias

    def norm(layer, x):
        return (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, keepdim=True, unbiased=False) + 1e-5
        ).sqrt() * layer.weight + layer.bias

    s = linear(delta.downs[0], rungs[0])
    for i, block in enumerate(delta.blocks):
        m = 1 / (1 + torch.exp(-delta.a[i] / 0.1))
        s = m * linear(delta.downs[i + 1], rungs[i + 1]) + (1 - m) * s
        q, k, v = linear(block.qkv, norm(block.norm1, s)).chunk(3, -1)
        d = q.shape[-1] // block.heads
        heads = [
            torch.softmax(q[..., c] @ k[..., c].mT / math.sqrt(d), -1) @ v[..., c]
            for c in (slice(h * d, (h + 1) * d) for h in range(block.heads))
        ]
        s = s + linear(block.proj, torch.cat(heads, -1))
        h = linear(block.fc1, norm(block.norm2, s))
        s = s + linear(block.fc2, h * (1 + torch.erf(h / math.sqrt(2))) / 2)
    return features + linear(delta.up, norm(delta.norm, s[:, 0]))


def climbed(family: str) -> tuple[Backbone, Tuner, torch.Tensor, list[torch.Tensor]]:
    """A float64 backbone with a random ladder; images and the frozen backbone's own rungs for them."""
    backbone, tuner = tuned(family)
    backbone.double(), tuner.double()
    with torch.no_grad():
        for _, parameter in tuner.trainable():
            parameter.normal_(0, 0.3)
    x, rungs, frozen = images(3).double(), [], tiny(family).eval().double()
    for i, site in enumerate(frozen.sites.find('block')):
        site.module.register_forward_hook(
            lambda _, args, out, i=i: rungs.extend([out] if i else [args[0], out])
        )
    rungs.append(frozen(x))
    return backbone, tuner, x, rungs


@pytest.mark.parametrize('family', ['vit', 'deit-distilled', 'clip', 'torchvision-vit'])
def test_ladder_climbs_the_frozen_tokens(family):
    backbone, tuner, x, (*rungs, features) = climbed(family)
    assert len(rungs) == len(backbone.sites.blocks) + 1
    assert torch.allclose(backbone(x), ladder(tuner.deltas['backbone#1'], rungs, features), rtol=0, atol=1e-8)
    assert (backbone(x) - features).abs().max() > 1e-2 and not tuner.rungs


def test_no_gradient_passes_through_the_backbone_of_a_ladder():
    backbone, tuner = tuned('vit')
    x = images(4)
    tokens = [torch.randn(4, 17, 32) for _ in range(4)]
    delta = tuner.deltas['backbone#1']

    def alone():
        tuner.rungs[threading.get_ident()] = list(tokens)
        delta(x, torch.randn(4, 32))

    assert saved_bytes(lambda: backbone(x)) == saved_bytes(alone) > 0
    for name, parameter in tuner.trainable():
        if name.endswith('up.weight'):
            nn.init.normal_(parameter)
    backbone(x).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for _, parameter in tuner.trainable())


@pytest.mark.parametrize('depth', ['deep', 'shallow'])
@pytest.mark.parametrize('first', ['VPT', 'LadderSide'])
def test_ladder_leaves_prompts_aside(depth, first):
    backbone = tiny('vit').eval()
    configs = [dict(type='VPT', depth=depth, length=2), dict(type='LadderSide', reduction=4, heads=2)]
    for config in configs if first == 'VPT' else configs[::-1]:
        TUNERS.build(config).attach(backbone)
    assert backbone(images(2)).isfinite().all()


def test_blocks_run_again_by_gradient_checkpointing_are_no_new_rungs():
    backbone = tiny('vit').train()
    lora, ladder = (
        TUNERS.build(config)
        for config in (dict(type='LoRA', rank=2), dict(type='LadderSide', reduction=4, heads=2))
    )
    lora.attach(backbone), ladder.attach(backbone)
    parameters = [parameter for tuner in (lora, ladder) for _, parameter in tuner.trainable()]
    plain = torch.autograd.grad(backbone(images(2)).square().sum(), parameters)
    backbone.network.set_grad_checkpointing(True)
    again = torch.autograd.grad(backbone(images(2)).square().sum(), parameters)
    assert (
        all(torch.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in zip(plain, again))
        and not ladder.rungs
    )


def test_a_failed_forward_leaves_no_rungs_to_the_next():
    backbone, tuner = tuned('vit')
    expected = backbone(images(2))
    handle = backbone.network.norm.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backbone(images(3))
    handle.remove()
    assert torch.equal(backbone(images(2)), expected)


def test_threads_climb_their_own_ladders():
    backbone, tuner, _, _ = climbed('vit')
    batches = [images(2, seed=seed).double() for seed in range(4)]
    with torch.no_grad():
        serial, wrong = [backbone(batch) for batch in batches], []

    def work(i: int) -> None:
        with torch.no_grad():
            wrong.extend(i for _ in range(10) if not torch.equal(backbone(batches[i]), serial[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not tuner.rungs


def test_a_ladder_of_one_rung():
    """A network of one block has no second block to compare with."""
    torch.manual_seed(0)
    backbone = timm_net('vit_tiny_patch16_224', **VIT | dict(depth=1)).eval()
    frozen = backbone(images(2))
    tuner = TUNERS.build(dict(type='LadderSide', reduction=4, heads=2))
    tuner.attach(backbone)
    assert torch.equal(backbone(images(2)), frozen) and len(tuner.deltas['backbone#1'].blocks) == 1


def test_count_on_vit_b16(count_on_vit_b16):
    assert count_on_vit_b16(type='LadderSide') == 2_376_492


@pytest.mark.parametrize(
    'config, family, error, text',
    [
        (
            dict(),
            'swin',
            NoSiteError,
            r"tokens \(N, C\), .*but 'layers\.0\.blocks\.0' \(SwinTransformerBlock, which takes \(8, 8, 16\)",
        ),
        (
            dict(),
            'resnet',
            NoSiteError,
            r"tokens \(N, C\), .*but 'layer1\.0' \(BasicBlock, which takes \(64, 8, 8\)",
        ),
        (
            dict(reduction=3),
            'vit',
            UserError,
            r'32 channels divided by reduction=3 are 10, which is no multiple of 4 heads',
        ),
        (dict(reduction=0), 'vit', UserError, r'reduction is 0'),
    ],
    ids=str,
)
def test_ladder_refusals(config, family, error, text):
    with pytest.raises(error, match=text):
        TUNERS.build(dict(type='LadderSide', **config)).attach(tiny(family))
