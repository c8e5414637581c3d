"""The lean last block: what it skips changes neither features nor gradients, with every tuner that
allows it.
"""

import pytest
import torch

from tests.contract.cases import CASES, Case
from tests.contract.runs import LABELS, Run, gradients, run, trained
from tests.nets import images, timm_net, tiny
from vet.core.model import ImageClassifier
from vet.core.tuner import Tuner

SMALL = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)
# look at other tokens, or do not say that they do not
WHOLE = {'Convpass', 'DTL', 'LadderSide', 'Mona', 'ResTuningBypass', 'SCT', 'AfterBlocks', 'PromptBlocks'}


def tokens(model: ImageClassifier) -> list[int]:
    """How many tokens reach the last block's MLP from now on."""
    seen: list[int] = []
    model.backbone.network.blocks[-1].mlp.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[1])
    )
    return seen


@pytest.mark.parametrize(
    'case', [pytest.param(case, id=str(case)) for case in CASES if case.on is None or 'vit' in case.on]
)
def test_logits_and_gradients_are_those_of_the_whole_block(case: Case):
    if not isinstance(run(case, 'vit'), Run):
        pytest.skip('refuses')
    model = trained(case, 'vit').train()
    torch.manual_seed(0)
    whole_loss, whole = gradients(model, images(6), LABELS)
    seen = tokens(model)
    torch.manual_seed(0)
    with model.features_only():
        lean_loss, lean = gradients(model, images(6), LABELS)
    assert seen == ([1] if case.name not in WHOLE else seen) and (case.name not in WHOLE or seen[0] > 1)
    assert lean_loss == pytest.approx(whole_loss, rel=1e-5)
    for name, gradient in whole.items():
        assert torch.allclose(lean[name], gradient, rtol=1e-4, atol=1e-6 + 1e-5 * gradient.abs().max()), name


def test_outside_nothing_is_left_of_it():
    model = trained(next(case for case in CASES if case.name == 'LoRA'), 'vit')
    with torch.no_grad():
        before = model(images())
        with model.features_only():
            lean = model(images())
        assert torch.equal(model(images()), before)
    assert torch.allclose(lean, before, rtol=1e-5, atol=1e-5)
    with pytest.raises(ZeroDivisionError), model.features_only():
        raise ZeroDivisionError
    assert not any(
        'forward' in part.__dict__ and '_reweighted' not in part.__dict__
        for part in model.backbone.network.modules()
    )


@pytest.mark.parametrize(
    'net',
    [
        lambda: timm_net('vit_base_patch16_siglip_224', **SMALL),
        lambda: timm_net('vit_tiny_patch16_224', **SMALL, global_pool='avg'),
        lambda: timm_net('deit_tiny_distilled_patch16_224', **SMALL),
        lambda: tiny('swin'),
        lambda: tiny('resnet'),
        lambda: tiny('torchvision-vit'),
    ],
    ids=['map', 'avg', 'distilled', 'swin', 'resnet', 'torchvision-vit'],
)
def test_networks_that_read_more_are_left_alone(net):
    assert net().features_only is None


@pytest.mark.parametrize(
    'name, options',
    [
        ('vit_base_patch16_clip_quickgelu_224', {}),
        ('vit_small_patch14_reg4_dinov2', {}),
        ('vit_tiny_patch16_224', dict(qk_norm=True, init_values=0.5)),
        ('deit3_small_patch16_224', {}),
    ],
)
def test_kinds_of_vit(name, options):
    backbone = timm_net(name, **SMALL | options).eval()
    model = ImageClassifier(backbone, [], torch.nn.Identity())
    with torch.no_grad():
        whole, seen = model(images()), tokens(model)
        with model.features_only():
            lean = model(images())
    assert seen == [1] and torch.allclose(lean, whole, rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_calls_the_lean_block_again():
    model = trained(next(case for case in CASES if case.name == 'LoRA'), 'vit')
    _, plain = gradients(model, images(6), LABELS)
    model.backbone.network.set_grad_checkpointing(True)
    seen = tokens(model)
    with model.features_only():
        _, again = gradients(model, images(6), LABELS)
    assert seen == [1, 1]
    assert all(torch.allclose(again[name], plain[name], rtol=1e-4, atol=1e-6) for name in plain)


def test_dropout_of_attention_acts_in_training_alone():
    """Of rate p, an attention weight is 0 or 1 / (1 - p) of itself: in the mean over draws, the lean block
    gives what the whole gives."""
    backbone = timm_net('vit_tiny_patch16_224', **SMALL, attn_drop_rate=0.5)
    model = ImageClassifier(backbone, [], torch.nn.Identity()).eval()
    x = images(2)
    with torch.no_grad(), model.features_only():
        still, again = model(x), model(x)
    assert torch.equal(still, again)
    last = backbone.network.blocks[-1].attn
    last.attn_drop.train()
    last.training = True
    torch.manual_seed(0)
    with torch.no_grad(), model.features_only():
        draws = torch.stack([model(x) for _ in range(200)])
        last.attn_drop.p = 0.0
        assert torch.allclose(model(x), still, atol=1e-6)
    assert (draws[0] - draws[1]).abs().max() > 1e-3
    spread = draws.std(0).mean()
    assert (draws.mean(0) - still).abs().mean() < 0.5 * spread


class Mean(torch.nn.Module):
    def forward(self, x, y):
        return y + y.mean(1, keepdim=True)


class AfterAll(Tuner):
    """Looks at all tokens that leave the last block."""

    def tune(self, site):
        self.after(site, Mean())


def test_an_edit_of_all_blocks_sees_all_tokens():
    model = ImageClassifier(tiny('vit').eval(), [AfterAll('blocks')], torch.nn.Identity())
    with torch.no_grad():
        whole = model(images())
        with model.features_only():
            torch.testing.assert_close(model(images()), whole)


def test_a_forward_of_somebody_elses_stays():
    model = ImageClassifier(tiny('vit').eval(), [], torch.nn.Identity())
    attention = model.backbone.network.blocks[-1].attn
    attention.forward = lambda x, **options: 2 * type(attention).forward(attention, x, **options)
    with torch.no_grad():
        whole = model(images())
        with model.features_only():
            torch.testing.assert_close(model(images()), whole)
        assert torch.equal(model(images()), whole)


def test_entered_twice():
    model = ImageClassifier(tiny('vit').eval(), [], torch.nn.Identity())
    seen = tokens(model)
    with model.features_only():
        with model.features_only():
            model(images())
        model(images())
    model(images())
    assert seen[:2] == [1, 1] and seen[2] > 1
