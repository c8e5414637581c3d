"""LoRA's starts from the weight and from training images, against PEFT's own starts."""

import copy

import peft
import pytest
import torch
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from peft.utils.incremental_pca import IncrementalPCA
from torch import nn

import vet
from tests.nets import images, tiny
from vet.core.contrast import contrastive_loss
from vet.errors import NoSiteError, UserError
from vet.registry import TUNERS

LABELS = torch.tensor([0, 1, 0, 1, 2, 2])
BATCHES = [(images(4), LABELS[:4]), (images(6)[4:], LABELS[4:])]
QKV = 'blocks.1.attn.qkv'
FROM_DATA = ('eva', 'corda', 'lora_ga')


def started(variant, batches=BATCHES, **config):
    """A prepared LoRA on the tiny ViT, and the network as it was."""
    torch.manual_seed(0)
    backbone = tiny('vit').eval()
    network = copy.deepcopy(backbone.network)
    tuner = TUNERS.build(dict(type='LoRA', rank=4, alpha=6, variant=variant, **config))
    tuner.attach(backbone)
    tuner.prepare(batches)
    return backbone, tuner, network


def of_peft(network, variant, **config):
    """PEFT's layer at QKV after its start."""
    lora = peft.LoraConfig(r=4, lora_alpha=6, target_modules=['qkv'], init_lora_weights=variant, **config)
    return peft.get_peft_model(network, lora).get_submodule(f'base_model.model.{QKV}')


def up_to_signs(found, wanted):
    """The largest difference of two lists of rows, each row with the better sign."""
    return torch.minimum((found - wanted).abs().amax(1), (found + wanted).abs().amax(1)).max().item()


@pytest.mark.parametrize('variant', ['olora', *FROM_DATA])
def test_the_start_is_the_frozen_output(variant):
    backbone, tuner, network = started(variant)
    assert torch.equal(backbone(images(2)), network(images(2)))
    assert all(delta.A.isfinite().all() for delta in tuner.deltas.values())


class Dead(nn.Module):
    """A network whose second layer gets only zeros from some images."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 16), nn.Linear(16, 8), nn.Linear(8, 2)
        nn.init.zeros_(self.first.bias)

    def forward(self, images):
        return self.head(self.second(self.first(images.flatten(1)).relu()))


@pytest.mark.parametrize('dead', [slice(0, 1), slice(None)], ids=['one image', 'all images'])
@pytest.mark.parametrize('variant', ['eva', 'corda'])
def test_inputs_that_are_zero_give_a_finite_start(variant, dead):
    torch.manual_seed(0)
    example = torch.randn(4, 3, 2, 2)
    example[dead] = 0
    tuned = vet.tune(Dead(), vet.LoRA(2, at='second', variant=variant), example=example)
    before = tuned(example)
    tuned.tuners[0].prepare([(example, LABELS[:4])])
    assert torch.allclose(tuned(example), before, atol=1e-6)
    assert all(parameter.isfinite().all() for parameter in tuned.parameters())


@pytest.mark.parametrize('variant', FROM_DATA)
def test_a_start_from_numbers_that_are_not_finite_is_refused(variant):
    torch.manual_seed(0)
    example = torch.randn(4, 3, 2, 2)
    tuned = vet.tune(Dead(), vet.LoRA(2, at='second', variant=variant), example=example)
    example[1, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match='LoRA cannot start from the training images: the .* are not finite'):
        tuned.tuners[0].prepare([(example, LABELS[:4])])


def test_one_image_gives_lora_ga_nothing_to_compare():
    with pytest.raises(UserError, match='in 1 images there was nothing to compare. Give two images or more'):
        started('lora_ga', [(images(1), LABELS[:1])])


@pytest.mark.parametrize('variant', FROM_DATA)
def test_prepare_changes_the_start_and_leaves_no_hook(variant):
    backbone, tuner, _ = started(variant, batches=[])
    before = tuner.deltas[QKV.replace('.', '/')].A.detach().clone()
    hooks = [list(module._forward_pre_hooks) for module in backbone.network.modules()]
    tuner.prepare(BATCHES)
    assert not torch.equal(tuner.deltas[QKV.replace('.', '/')].A, before)
    assert [list(module._forward_pre_hooks) for module in backbone.network.modules()] == hooks
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_olora_starts_as_in_peft():
    _, tuner, network = started('olora')
    delta, theirs = tuner.deltas[QKV.replace('.', '/')], of_peft(network, 'olora')
    assert torch.equal(delta.A, theirs.lora_A['default'].weight)
    assert torch.equal(delta.B, theirs.lora_B['default'].weight)


def test_eva_starts_at_the_principal_components_as_in_peft(monkeypatch):
    _, tuner, network = started('eva', batches=[(images(6), LABELS)])
    monkeypatch.setattr(IncrementalPCA, '_svd_fn_lowrank', IncrementalPCA._svd_fn_full)  # theirs is random
    config = peft.LoraConfig(
        r=4,
        target_modules=['qkv'],
        init_lora_weights='eva',
        eva_config=peft.EvaConfig(rho=1.0, use_label_mask=False),
    )
    theirs = peft.get_eva_state_dict(
        network,
        [images(6)],
        config,
        forward_fn=lambda model, inputs: model(inputs),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    delta = tuner.deltas[QKV.replace('.', '/')]
    assert torch.allclose(delta.A, theirs[QKV].float(), atol=1e-4)
    assert not delta.B.any()
    x = torch.linalg.qr(delta.A.detach().T).R.abs()
    assert torch.allclose(x, torch.eye(4), atol=1e-5)


def test_corda_starts_as_in_peft():
    _, tuner, network = started('corda')
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=['qkv'],
        init_lora_weights='corda',
        corda_config=peft.tuners.lora.config.CordaConfig(corda_method='ipm'),
    )

    def run():
        for image in images(6):
            network(image[None])

    preprocess_corda(network, config, run_model=run)
    layer = peft.get_peft_model(network, config).get_submodule(f'base_model.model.{QKV}')
    delta = tuner.deltas[QKV.replace('.', '/')]
    A, B = layer.lora_A['default'].weight, layer.lora_B['default'].weight
    assert up_to_signs(delta.A, A) < 1e-4 * A.abs().max()
    assert up_to_signs(delta.B.T, B.T) < 1e-4 * B.abs().max()


@pytest.mark.parametrize('dead', [1, 2], ids=['the first image', 'every image'])
def test_corda_starts_beside_inputs_of_zeros(dead):
    torch.manual_seed(0)
    backbone = tiny('vit').eval()
    silence = backbone.network.blocks[1].norm1.register_forward_hook(
        lambda module, args, y: torch.cat([torch.zeros_like(y[:dead]), y[dead:]])
    )
    tuner = TUNERS.build(dict(type='LoRA', rank=4, variant='corda'))
    tuner.attach(backbone)
    tuner.prepare([(images(2), LABELS[:2])])
    silence.remove()
    delta = tuner.deltas[QKV.replace('.', '/')]
    assert delta.A.isfinite().all() and bool(delta.B.any()) == (dead == 1)


def test_lora_ga_starts_at_the_gradient_of_the_contrastive_loss():
    _, tuner, network = started('lora_ga')
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=['qkv'],
        init_lora_weights='lora_ga',
        lora_ga_config=peft.LoraGAConfig(direction='ArB2r', scale='unit'),
    )

    def step():
        for views, labels in BATCHES:
            contrastive_loss(network(torch.cat([views, views.flip(-1)])), labels.repeat(2)).backward()

    preprocess_loraga(network, config, step)
    gradient = network.get_submodule(QKV)._peft_loraga_grad
    layer = peft.get_peft_model(network, config).get_submodule(f'base_model.model.{QKV}')
    delta, length = tuner.deltas[QKV.replace('.', '/')], 96**0.25 / 16**0.5
    values = torch.linalg.svdvals(gradient)[4:8]  # by which PEFT scales B, and the authors do not
    assert up_to_signs(delta.A / length, layer.lora_A['default'].weight) < 1e-4
    theirs = layer.lora_B['default'].weight / values
    assert up_to_signs(delta.B.T / length, theirs.T) < 1e-4


@pytest.mark.parametrize('variant', ['olora', *FROM_DATA])
def test_parts_start_apart(variant):
    _, tuner, network = started(variant, parts='qv')
    delta = tuner.deltas[QKV.replace('.', '/')]
    _, whole, _ = started(variant, at='attn.qkv')
    assert delta.A.shape == (8, 32) and delta.B.shape == (64, 4)
    if variant == 'eva':
        assert torch.equal(delta.A, whole.deltas[QKV.replace('.', '/')].A.repeat(2, 1))
    if variant == 'olora':
        Q, R = torch.linalg.qr(network.get_submodule(QKV).weight[64:])
        assert torch.allclose(delta.A[4:], R[:4]) and torch.allclose(delta.B[32:], Q[:, :4])


def test_a_start_is_saved():
    _, tuner, _ = started('corda')
    names = {name.rpartition('.')[2] for name in tuner.state()}
    assert names == {'A', 'B', 'A0', 'B0'}


@pytest.mark.parametrize(
    'config, family, error, text',
    [
        (dict(variant='eva', at='weight'), 'resnet', NoSiteError, 'for EVA a Linear that is called'),
        (dict(variant='eva', rank=33), 'vit', UserError, 'rank is 33'),
        (dict(variant='lora_ga', rank=17), 'vit', UserError, 'rank is 17, but LoRAGA has 16 directions'),
    ],
    ids=str,
)
def test_refusals(config, family, error, text):
    with pytest.raises(error, match=text):
        TUNERS.build(dict(type='LoRA', **config)).attach(tiny(family))
