"""Border prompts: the padded image pixel by pixel, and the networks that take it or refuse."""

import pytest
import torch

from tests.nets import SWIN, images, timm_net, tiny, tuned
from vet.core.tuner import Tuner
from vet.errors import NoSiteError, UserError
from vet.registry import TUNERS


def border(**config: object) -> Tuner:
    return TUNERS.build(dict(type='BorderPrompt', **config))


@pytest.mark.parametrize('family', ['resnet', 'convnext', 'mobilenet', 'vgg'])
def test_features_are_those_of_the_image_within_its_border(family):
    backbone, tuner = tuned(family, type='BorderPrompt', pad=3)
    delta, x = tuner.deltas['backbone'], images(2).double()
    padded = torch.full((2, 3, 38, 38), torch.nan, dtype=torch.float64)
    for row in range(38):
        for column in range(38):
            inside = 3 <= row < 35
            if inside and 3 <= column < 35:
                padded[:, :, row, column] = x[:, :, row - 3, column - 3]
            elif inside:
                padded[:, :, row, column] = delta.columns[
                    :, row - 3, column if column < 3 else column - 32
                ].detach()
            else:
                padded[:, :, row, column] = delta.rows[:, row if row < 3 else row - 32, column].detach()
    frozen = tiny(family).eval().double()
    assert torch.allclose(backbone(x), frozen(padded), rtol=0, atol=1e-8)
    assert (frozen(padded) - frozen(x)).abs().max() > 1e-3


def test_border_starts_as_uniform_pixels_normalised_as_the_images():
    backbone = tiny('resnet')
    tuner = border(pad=40)
    tuner.attach(backbone)
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (backbone.preprocessing.mean, backbone.preprocessing.std)
    )
    for _, parameter in tuner.trainable():
        pixels = parameter.detach() * std + mean
        assert pixels.min() > -1e-5 and pixels.max() < 1 + 1e-5
        assert pixels.mean((1, 2)).tolist() == pytest.approx([0.5] * 3, abs=0.02)


def test_pixels_of_the_unit_interval_have_gradients_that_the_normalisation_scales():
    backbone, x = tiny('resnet').eval(), images(2)
    std = torch.tensor(backbone.preprocessing.std).view(3, 1, 1)
    gradients = []
    for unit in (False, True):
        torch.manual_seed(0)
        tuner = border(pad=2, unit=unit)
        tuner.attach(backbone)
        delta = next(iter(tuner.deltas.values()))
        outputs = backbone(x)
        gradients.append(torch.autograd.grad(outputs.square().sum(), delta.rows)[0])
        drawn = delta.rows.detach()
        assert (drawn.min() >= 0 and drawn.max() <= 1) == unit
        tuner.detach()
    assert torch.allclose(gradients[1], gradients[0] / std, rtol=1e-4, atol=1e-6)


def test_count_of_oblong_images():
    backbone = timm_net('resnet18', layers=(1, 1, 1, 1), channels=(8, 8, 8, 8))
    for pad, count in ((1, 3 * (2 * 226 + 2 * 224)), (5, 13_740)):
        tuner = border(pad=pad)
        tuner.attach(backbone)
        assert sum(parameter.numel() for _, parameter in tuner.trainable()) == count
        tuner.detach()
    oblong = timm_net('resnet18', (32, 48), layers=(1, 1, 1, 1), channels=(8, 8, 8, 8))
    tuner = border(pad=2)
    tuner.attach(oblong)
    assert sum(parameter.numel() for _, parameter in tuner.trainable()) == 3 * (4 * 52 + 4 * 32)
    assert oblong(torch.randn(2, 3, 32, 48)).shape == (2, 8)


def test_trying_the_network_leaves_every_mode_as_it_was():
    backbone = tiny('resnet').train()
    modes = [module.training for module in backbone.modules()]
    border().attach(backbone)
    assert [module.training for module in backbone.network.modules()] == modes[1:]
    assert len(set(modes)) == 2


def test_swin_that_pads_its_windows_takes_a_border():
    backbone = timm_net('swin_tiny_patch4_window7_224', strict_img_size=False, **SWIN).eval()
    tuner = border(pad=4)
    tuner.attach(backbone)
    backbone(images(2)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for _, parameter in tuner.trainable())


@pytest.mark.parametrize(
    'family, why',
    [
        ('vit', r'Input height \(42\)'),
        ('clip', r'Input height \(42\)'),
        ('deit-distilled', r'Input height \(42\)'),
        ('swin', r'Input height \(42\)'),
        ('torchvision-vit', 'Wrong image height'),
    ],
)
def test_networks_of_one_size_refuse_and_say_why(family, why):
    backbone = tiny(family)
    text = (
        r'BorderPrompt needs a network that takes images padded to \(3, 42, 42\) \(.*'
        + why
        + r'.*takes \(3, 32, 32\)'
    )
    with pytest.raises(NoSiteError, match=text):
        border().attach(backbone)
    assert not backbone.network._forward_pre_hooks


def test_a_network_whose_features_grow_with_the_image_is_refused():
    backbone = tiny('resnet')
    backbone.network.global_pool.pool = torch.nn.Flatten()  # 32 maps of one pixel, of four when padded
    with pytest.raises(
        NoSiteError, match=r'padded to \(3, 42, 42\) to the same \(32,\) features, not \(128,\)'
    ):
        border().attach(backbone)


def test_images_of_another_size_are_refused_with_both():
    backbone, _ = tuned('resnet', type='BorderPrompt')
    with pytest.raises(UserError, match=r'images of \(3, 32, 32\); given: \(3, 40, 40\)'):
        backbone(images(2, size=40).double())


def test_nonsense_is_refused():
    with pytest.raises(UserError, match=r'pad is 0; it must be at least 1'):
        border(pad=0)
