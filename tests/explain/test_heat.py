"""Grad-CAM and attention rollout against plain torch, for families of networks, with tuners attached."""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image

from tests.engine.runs import ended, small
from tests.nets import images, tiny
from vet.cli.explain import _explain
from vet.core.model import ImageClassifier
from vet.core.objective import build_objective
from vet.errors import UserError
from vet.explain.heat import _noting_maps, grad_cam, rollout
from vet.explain.overlay import drawn_over
from vet.heads.linear import LinearHead
from vet.registry import BACKBONES, TUNERS
from vet.transforms.torchvision import build_transform

NAMES = ['a', 'b', 'c']


def model_of(family, *tuners):
    torch.manual_seed(0)
    backbone = tiny(family)
    head = LinearHead(backbone.num_features, 3)
    torch.nn.init.normal_(head.fc.weight)
    model = ImageClassifier(backbone, [TUNERS.build(entry) for entry in tuners], head, NAMES)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


LORA = dict(type='LoRA', rank=2, at='weight')
PLACES = {
    'vit': (4, 4), 'clip': (4, 4), 'deit-distilled': (4, 4), 'torchvision-vit': (4, 4), 'swin': (4, 4),
    'convnext': (1, 1), 'resnet': (1, 1), 'vgg': None,
}  # fmt: skip


@pytest.mark.parametrize('family', PLACES)
def test_grad_cam_has_heat_for_each_place(family):
    model = model_of(family, LORA)
    before = [parameter.grad for parameter in model.parameters()]
    x = images(4, 64 if PLACES[family] == (1, 1) else 32)
    heat, other, third = (grad_cam(model, x, [k] * 4) for k in (0, 1, 2))
    assert heat.shape[0] == 4 and heat.shape[1] * heat.shape[2] > 1 and not heat.requires_grad
    assert heat.min() == 0 and max(heat.max(), other.max(), third.max()) == 1
    assert not (heat.equal(other) and heat.equal(third))
    assert [parameter.grad for parameter in model.parameters()] == before
    assert model.training  # as before


HIERARCHICAL = dict(
    pvt_v2_b0=((2, 2), dict(embed_dims=(8, 16, 20, 32), num_heads=(1, 2, 4, 4))),
    twins_svt_small=((2, 2), dict(embed_dims=(8, 16, 16, 32), num_heads=(1, 2, 2, 4), depths=(1, 1, 1, 1))),
    nest_tiny=((4, 4), dict(img_size=64)),
)


@pytest.mark.parametrize('name', HIERARCHICAL)
def test_grad_cam_of_blocks_whose_tokens_have_no_grid(name):
    """The heat has the places of the last map. NesT's blocks give windows, which are no places."""
    grid, kwargs = HIERARCHICAL[name]
    entry = dict(type='timm', name=name, pretrained=False, kwargs=kwargs, preprocessing=dict(size=64))
    backbone = BACKBONES.build(entry)
    head = LinearHead(backbone.num_features, 3)
    model = ImageClassifier(backbone, [TUNERS.build(dict(type='LoRA', rank=2))], head, NAMES).eval()
    x = images(2, 64)
    heats = [grad_cam(model, x, [k] * 2) for k in range(3)]
    assert heats[0].shape == (2, *grid) and max(heat.max() for heat in heats) == 1
    assert not heats[0].equal(heats[1])
    if name == 'pvt_v2_b0':  # by hand: its last stage gives a map
        found = []
        handle = backbone.network.stages[-1].register_forward_hook(
            lambda module, args, out: found.append(out)
        )
        logits = model(x.clone().requires_grad_())
        handle.remove()
        [slope] = torch.autograd.grad(logits[:, 2].sum(), found)
        heat = (slope.mean((2, 3), keepdim=True) * found[0]).sum(1).relu()
        heat = heat - heat.amin((1, 2), keepdim=True)
        wanted = heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)
        torch.testing.assert_close(heats[2], wanted.detach())


@pytest.mark.parametrize('size', [1e-7, 1, 1e4])
def test_a_map_is_known_by_its_values_whatever_their_size(size):
    """Up to rounding. A small map has other values than another small map."""
    torch.manual_seed(0)
    wanted = size * torch.randn(2, 4, 3, 3)
    rounded = (wanted + 2e-6 * size * torch.randn_like(wanted)).requires_grad_()
    other = (size * torch.randn(2, 4, 3, 3)).requires_grad_()
    found = []
    hook = _noting_maps(found, [wanted])
    for tensor in (other, rounded):
        hook(None, (), tensor)
    assert [(number, tensor is rounded) for number, tensor in found] == [(0, True)]


def test_grad_cam_of_a_convnet_is_the_papers():
    model, x = model_of('resnet', LORA).eval(), images(2, 64)
    maps = []
    handle = model.backbone.network.layer4.register_forward_hook(lambda module, args, out: maps.append(out))
    logits = model(x.requires_grad_())
    handle.remove()
    [slope] = torch.autograd.grad(logits[:, 2].sum(), maps)
    heat = (slope.mean((2, 3), keepdim=True) * maps[0]).sum(1).relu()
    wanted = heat - heat.amin((1, 2), keepdim=True)
    wanted = wanted / wanted.amax((1, 2), keepdim=True).clamp(min=1e-12)
    torch.testing.assert_close(grad_cam(model, x, [2, 2]), wanted.detach())


def test_grad_cam_of_tnt_is_that_of_the_patches_of_its_last_block():
    """A block of TNT takes pixels and patches. Only the class token is read after the last block."""
    kwargs = dict(img_size=64, embed_dim=32, inner_dim=8, depth=2, num_heads_outer=4)
    entry = dict(
        type='timm', name='tnt_s_legacy_patch16_224', pretrained=False, kwargs=kwargs,
        preprocessing=dict(size=64),
    )  # fmt: skip
    backbone = BACKBONES.build(entry)
    model = ImageClassifier(
        backbone, [TUNERS.build(LORA)], LinearHead(backbone.num_features, 3), NAMES
    ).eval()
    torch.nn.init.normal_(model.head.fc.weight)
    x = images(2, 64)
    seen = []
    handle = backbone.network.blocks[-1].register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    logits = model(x.clone().requires_grad_())
    handle.remove()
    [slope] = torch.autograd.grad(logits[:, 1].sum(), seen)
    weights = slope[:, 1:].mean(1, keepdim=True)
    heat = (weights * seen[0][:, 1:]).sum(2).relu().view(2, 4, 4)
    heat = heat - heat.amin((1, 2), keepdim=True)
    wanted = heat / heat.amax((1, 2), keepdim=True)
    torch.testing.assert_close(grad_cam(model, x, [1, 1]), wanted.detach())


@pytest.mark.parametrize('tuner', [LORA, dict(type='VPT', length=3)])
def test_grad_cam_of_a_vit_is_that_of_the_input_of_its_last_block(tuner):
    model, x = model_of('vit', tuner).eval(), images(2)
    tokens = []
    block = model.backbone.network.blocks[-1]
    handle = block.register_forward_pre_hook(lambda module, args: tokens.append(args[0]))
    logits = model(x.requires_grad_())
    handle.remove()
    [slope] = torch.autograd.grad(logits.amax(1).sum(), tokens)
    weights = slope[:, 1:17].mean(1, keepdim=True)
    heat = (weights * tokens[0][:, 1:17]).sum(2).relu().view(2, 4, 4)
    heat = heat - heat.amin((1, 2), keepdim=True)
    torch.testing.assert_close(grad_cam(model, x), heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12))


@pytest.mark.parametrize('tuner', [LORA, dict(type='VPT', length=3)])
def test_rollout_is_the_papers(tuner):
    model, x = model_of('vit', tuner).eval(), images(2)
    flow = None
    for block in model.backbone.network.blocks:
        seen = []
        handle = block.attn.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            model(x)
        handle.remove()
        B, N, C = seen[0].shape
        q, k, _ = block.attn.qkv(seen[0]).view(B, N, 3, 2, C // 2).permute(2, 0, 3, 1, 4)
        matrix = (q @ k.mT * (C // 2) ** -0.5).softmax(-1).mean(1)
        layer = (matrix + torch.eye(N)) / 2
        flow = layer if flow is None else layer @ flow
    heat = flow[:, 0, 1:17].view(2, 4, 4)
    heat = heat - heat.amin((1, 2), keepdim=True)
    torch.testing.assert_close(rollout(model, x), (heat / heat.amax((1, 2), keepdim=True)).detach())


@pytest.mark.parametrize('family', ['clip', 'deit-distilled', 'torchvision-vit'])
def test_rollout_of_other_vits(family):
    heat = rollout(model_of(family, LORA), images(2))
    assert heat.shape == (2, 4, 4) and heat.max() == 1


@pytest.mark.parametrize(
    'family, why', [('swin', 'attention within windows'), ('resnet', 'no attention over all patches')]
)
def test_rollout_without_meaning_is_refused(family, why):
    with pytest.raises(UserError, match=f'no meaning for .*{why}.*--method grad-cam'):
        rollout(model_of(family), images(2))


def test_models_without_one_output_are_refused():
    model = model_of('vit')
    model.objective = build_objective(dict(type='Regression'), NAMES)
    model.head.forward = lambda features: features[:, :2, None, None].expand(-1, -1, 4, 4)
    model.objective.finish = lambda outputs: outputs
    with pytest.raises(UserError, match="the objective 'Regression' gives .* numbers for an image"):
        grad_cam(model, images(1))


def test_heat_lies_over_the_photo():
    view = build_transform(None, (32, 32), [0.5] * 3, [0.25] * 3, 1.0, 'bicubic')
    heat = torch.zeros(4, 4)
    heat[0, 0] = 1
    picture = np.asarray(drawn_over(view(Image.new('RGB', (40, 40), 'gray')), heat, view)).astype(int)
    assert picture.shape == (32, 32, 3)
    assert picture[0, 0, 0] - picture[0, 0, 2] > 60 > picture[31, 31, 0] - picture[31, 31, 2]  # yellow, blue


@pytest.mark.slow
def test_the_command_draws_each_image(tmp_path, python):
    run = small(tmp_path / 'run', **{'train.max_epochs': 1})
    run.train()
    for name in ('one', 'two'):
        (tmp_path / name).mkdir()
        Image.new('RGB', (20, 30), 'red').save(tmp_path / name / 'photo.png')
    folders = [tmp_path / 'one', tmp_path / 'two']
    done = python(
        '-m', 'vet', 'explain', run.folder.output, *folders, '--out', tmp_path / 'out', '--target', '7'
    )
    wanted = [tmp_path / 'out' / 'photo.png', tmp_path / 'out' / 'photo-2.png']
    assert done.stdout.split() == [str(path) for path in wanted]
    assert all(Image.open(path).size == (8, 8) for path in wanted)


def test_an_unknown_class_is_refused(tmp_path):
    run = small(tmp_path / 'run', **{'train.max_epochs': 0})
    run.train()
    Image.new('RGB', (20, 30), 'red').save(tmp_path / 'photo.png')
    given = dict(
        images=[str(tmp_path / 'photo.png')], out=str(tmp_path / 'out'), method='rollout', device='cpu'
    )
    given |= dict(model=str(run.folder.output), backbone=None, task=None, imports=[])
    with pytest.raises(UserError, match="unknown class for --target 'x'.*Allowed: 5, 6, 7, 8, 9"):
        _explain(argparse.Namespace(target='x', **given))
    with pytest.raises(UserError, match='cannot write .*photo.png.*Choose another folder'):
        _explain(argparse.Namespace(target=None, **given | dict(out=str(tmp_path / 'photo.png' / 'out'))))
    _explain(argparse.Namespace(target=None, **given))
    assert (tmp_path / 'out' / 'photo.png').is_file()


def test_the_report_shows_where_the_network_looked(tmp_path):
    options = {'train.max_epochs': 1, 'evaluation.report': True}
    before = ended(small(tmp_path / 'without', **{'train.max_epochs': 1}))
    assert ended(small(tmp_path / 'run', **options)) == before
    page = (tmp_path / 'run' / 'report.html').read_text()
    assert (
        0 < page.count('where the network looked for') <= 2 * 24
    )  # a caption, and a name for screen readers
    assert page.count('<img') > page.count('where the network looked for') / 2
