"""Maps of features from every family, with tuners attached; windows over images of any size."""

from contextlib import nullcontext

import pytest
import torch

from tests.nets import images, timm_net, tiny
from vet.backbones.maps import maps_of_torchvision
from vet.core.assemble import build_classifier
from vet.core.maps import Maps
from vet.core.objective import build_objective
from vet.core.windows import over_windows, starts
from vet.engine.fast.recompute import blocks_recomputed
from vet.errors import UserError
from vet.registry import BACKBONES, HEADS

NAMES = ['sky', 'road', 'tree']
FAMILIES = dict(
    vit=[(32, 4, 4)] * 3,
    swin=[(16, 8, 8), (32, 4, 4)],
    convnext=[(8, 8, 8), (16, 4, 4), (16, 2, 2), (24, 1, 1)],
    resnet=[(64, 16, 16), (8, 8, 8), (16, 4, 4), (24, 2, 2), (32, 1, 1)],
)


def masked(backbone, head='LinearMask', tuners=(dict(type='LoRA', rank=2),), **options):
    objective = build_objective(dict(type='Segmentation'), NAMES)
    return build_classifier(backbone, list(tuners), dict(type=head, **options), NAMES, objective)


@pytest.mark.parametrize('family', FAMILIES)
def test_maps_of_timm(family):
    backbone = tiny(family).eval()
    stages = range(len(backbone.maps.channels))
    maps = backbone.maps.compute(backbone.network, images(2), stages)
    assert [tuple(one.shape[1:]) for one in maps] == FAMILIES[family]
    assert backbone.maps.channels == tuple(shape[0] for shape in FAMILIES[family])


def test_the_last_map_of_a_vit_holds_the_tokens_that_the_network_pools():
    backbone = tiny('vit').eval()
    [last] = backbone.maps.compute(backbone.network, images(2), [2])
    tokens = backbone.network.forward_features(images(2))[:, 1:]
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), tokens)


@pytest.mark.parametrize(
    'name, kwargs, shapes',
    [
        ('resnet18', {}, [(64, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)]),
        ('mobilenet_v2', dict(width_mult=0.25), [(8, 16, 16), (8, 8, 8), (8, 4, 4), (24, 2, 2)]),
    ],
)
def test_maps_of_torchvision(name, kwargs, shapes):
    entry = dict(type='torchvision', name=name, pretrained=False, kwargs=kwargs, preprocessing=dict(size=32))
    backbone = BACKBONES.build(entry).eval()
    maps = backbone.maps.compute(backbone.network, images(2), range(len(backbone.maps.channels)))
    assert [tuple(one.shape[1:]) for one in maps] == shapes


def test_maps_of_the_vit_of_torchvision():
    backbone = tiny('torchvision-vit').eval()
    maps = maps_of_torchvision(backbone.network, backbone.sites.calls, (32, 32))
    first, last = maps.compute(backbone.network, images(2), [0, 1])
    assert first.shape == last.shape == (2, 32, 4, 4) and maps.strides == (8, 8)
    seen = []
    with backbone.network.encoder.register_forward_hook(lambda *call: seen.append(call[-1])):
        backbone.network(images(2))
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), seen[0][:, 1:])


def test_the_stages_of_a_head():
    plain = Maps((8,) * 12, (16,) * 12, lambda *_: [])
    assert plain.stages(4) == (2, 5, 8, 11) and plain.stages(1) == (11,)
    assert Maps((8, 16), (4, 8), lambda *_: []).stages(4) == (0, 1)
    assert Maps((8, 8, 16, 32, 64), (2, 4, 8, 16, 32), lambda *_: []).stages(4) == (1, 2, 3, 4)


@pytest.mark.parametrize('head', ['LinearMask', 'FPNMask'])
@pytest.mark.parametrize('family', FAMILIES)
def test_every_tuned_number_and_every_number_of_the_head_has_a_gradient(family, head):
    model = masked(tiny(family), head, [dict(type='LoRA', rank=2, at='weight')]).train()
    for name, parameter in model.trainable().items():  # B is zero
        if name.startswith('tuners'):
            parameter.data.normal_(0, 0.1)
    outputs = model(images(2))
    assert outputs.shape == (2, 3, 32, 32) and outputs.dtype == torch.float32
    outputs.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.trainable().values())
    assert all(p.grad is None for p in model.backbone.parameters())


def test_the_head_is_the_formula_of_its_docstring():
    model = masked(tiny('vit')).eval()
    [last] = model.backbone.maps.compute(model.backbone.network, images(2), [2])
    norm, conv = model.head.norm, model.head.conv
    x = (last - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps) ** 0.5
    logits = torch.einsum('kc,bchw->bkhw', conv.weight[..., 0, 0], x) + conv.bias[:, None, None]
    wanted = torch.nn.functional.interpolate(logits, (32, 32), mode='bilinear')
    torch.testing.assert_close(model(images(2)), wanted, rtol=1e-4, atol=1e-5)
    assert model.count()['head'] == 2 * 32 + 32 * 3 + 3


TUNERS = [
    dict(type='LoRA', rank=2), dict(type='VPT', length=3, depth='deep'), dict(type='VPT', length=3),
    dict(type='Adapter', width=4), dict(type='BitFit'), dict(type='Prefix', length=2), dict(type='Partial'),
    dict(type='SSF'), dict(type='Full'), dict(type='LinearProbe'),
]  # fmt: skip


@pytest.mark.parametrize('tuner', TUNERS, ids=str)
def test_tuners_stay_attached(tuner):
    frozen, tuned = masked(tiny('vit'), tuners=()).eval(), masked(tiny('vit'), tuners=[tuner]).eval()
    tuned.head.load_state_dict(frozen.head.state_dict())
    with torch.no_grad():
        for name, parameter in tuned.trainable().items():
            if name.startswith('tuners'):
                parameter.add_(torch.randn(parameter.shape), alpha=0.3)
        same = torch.equal(tuned(images(2)), frozen(images(2)))
    assert same == (tuner['type'] == 'LinearProbe')


@pytest.mark.parametrize(
    'tuner', [dict(type='SideTuning'), dict(type='PixelBranch'), dict(type='LadderSide')], ids=str
)
def test_tuners_beside_the_maps_are_refused(tuner):
    with pytest.raises(
        UserError, match=f'{tuner["type"]} edits .*but the maps of features do not pass through it'
    ):
        masked(tiny('vit'), tuners=[tuner])


def test_refusals():
    backbone = tiny('vit')
    single = build_objective(None, NAMES)
    with pytest.raises(
        UserError, match="model.head is 'LinearMask', which answers for each pixel.*one class"
    ):
        build_classifier(backbone, [], dict(type='LinearMask'), NAMES, single)
    with pytest.raises(UserError, match="'Linear', which answers for the image.*LinearMask or FPNMask"):
        masked(backbone, 'Linear')
    with pytest.raises(UserError, match='model.head.channels is 3; leave it out'):
        masked(backbone, channels=3)
    backbone.maps = None
    with pytest.raises(UserError, match='vit_tiny_patch16_224.*gives none. Choose another backbone'):
        masked(backbone)


def test_a_head_of_a_user(monkeypatch):
    from vet.core.maps import MapHead

    class Mean(MapHead):
        maps = 2

        def __init__(self, channels, num_classes):
            super().__init__()
            self.conv = torch.nn.Conv2d(sum(channels), num_classes, 1)

        def forward(self, maps, size):
            return torch.nn.functional.interpolate(self.conv(torch.cat(list(maps), 1)), tuple(size))

    monkeypatch.setitem(HEADS.module_dict, 'Mean', Mean)
    assert masked(tiny('vit'), 'Mean').eval()(images(1)).shape == (1, 3, 32, 32)


# Windows ----------------------------------------------------------------------------------------------------


def test_windows_cover_every_pixel_and_overlap():
    for whole in (8, 9, 12, 13, 40):
        places = starts(whole, 8, 0.5)
        assert places[0] == 0 and places[-1] == whole - 8
        assert all(0 < b - a <= 4 for a, b in zip(places, places[1:]))
    assert starts(8, 8, 0.5) == [0] and starts(24, 8, 0.0) == [0, 8, 16]


def test_logits_are_averaged_over_windows():
    net = lambda x: x[:, :1].mean((2, 3), keepdim=True).expand(-1, 1, *x.shape[2:])  # noqa: E731
    image = torch.zeros(1, 3, 4, 6)
    image[..., 4:] = 1.0  # windows begin at the columns 0 and 2
    found = over_windows(net, image, (4, 4), 0.5)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([0, 0, 0.25, 0.25, 0.5, 0.5]))
    local = lambda x: 2 * x[:, :1]  # noqa: E731
    noise = torch.randn(2, 3, 11, 3)
    torch.testing.assert_close(over_windows(local, noise, (4, 4), 0.3), 2 * noise[:, :1])


def test_a_network_of_a_fixed_size_takes_any_image():
    model = masked(tiny('swin')).eval()
    with torch.no_grad():
        for size in ((32, 32), (20, 50), (33, 31), (48, 48)):
            assert model.of_any_size(torch.randn(1, 3, *size)).shape == (1, 3, *size)
        whole = torch.randn(1, 3, 32, 32)
        assert torch.equal(model.of_any_size(whole), model(whole))


def test_lean_training_computes_every_token():
    model = masked(
        timm_net('vit_tiny_patch16_224', img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=2)
    )
    with model.features_only():
        assert model.train()(images(2)).shape == (2, 3, 32, 32)


def test_blocks_that_are_computed_again_give_the_same_gradients():
    model = masked(tiny('vit')).train()
    gradients = []
    for context in (nullcontext(), blocks_recomputed(model)):
        model.zero_grad()
        with context:
            model(images(2)).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.trainable().values()])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)
