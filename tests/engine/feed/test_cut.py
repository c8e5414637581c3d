"""The network goes on from its cut as it does from images, and is what it was afterwards."""

import copy

import pytest
import torch
from torch import nn

from tests.nets import DEFAULT_FAMILIES, images, tiny
from vet.core.backbone import Backbone, Preprocessing
from vet.core.model import ImageClassifier
from vet.core.site_map import Layout
from vet.engine.feed.cut import NoCutError, Resumed, find_cut
from vet.registry import TUNERS

SHAPE = torch.Size((3, 32, 32))


def classifier(backbone, *tuners):
    torch.manual_seed(0)
    return ImageClassifier(
        backbone, map(TUNERS.build, tuners), nn.Linear(backbone.num_features, 3), list('abc')
    )


def traces(network):
    return {
        name: (
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            vars(module).get('forward'),
            module.training,
        )
        for name, module in network.named_modules()
    }


@pytest.mark.parametrize(
    'family, last',
    [
        ('vit', 'blocks.2'),
        ('swin', 'layers.1.blocks.0'),
        ('convnext', 'stages.3.blocks.0'),
        ('resnet', 'layer4.0'),
        ('torchvision-vit', 'encoder.layers.encoder_layer_1'),
        ('vgg', 'pre_logits.fc2'),
        ('mobilenet', 'blocks.2.0'),
    ],
)
def test_it_goes_on_from_the_last_block(family, last):
    model = classifier(tiny(family), dict(type='Partial', blocks=1))
    before, state = traces(model.backbone.network), copy.deepcopy(model.backbone.state_dict())
    cut = find_cut(model, SHAPE)
    assert cut.name == last and not cut.needs_images
    whole, resumed = (copy.deepcopy(model).train() for _ in range(2))
    cut = find_cut(resumed, SHAPE)
    with torch.no_grad():
        kept = cut.reach(images(5))
    given = Resumed(resumed, cut)(cut.blank(5, kept.device), kept)
    expected = whole(images(5))
    assert torch.equal(given, expected)
    for logits in (given, expected):
        logits.square().sum().backward()
    for name, parameter in whole.trainable().items():
        torch.testing.assert_close(resumed.trainable()[name].grad, parameter.grad, rtol=0, atol=0)
    assert traces(model.backbone.network) == before
    assert all(torch.equal(value, state[name]) for name, value in model.backbone.state_dict().items())


@pytest.mark.parametrize('family', ['vit', 'convnext', 'swin'])
def test_the_kept_tensor_has_the_strides_of_the_first_forward(family):
    """Other strides may mean other kernels, which round differently."""
    model = classifier(tiny(family), dict(type='Partial', blocks=1)).eval()
    cut, seen = find_cut(model, SHAPE), []
    cut.place.register_forward_pre_hook(lambda _, args: seen.append(args[0].stride()))
    model(images(5))
    kept = cut.reach(images(5)).flatten().view(5, *cut.shape)  # as numbers in a file
    Resumed(model, cut)(images(5), kept)
    assert seen[-1] == seen[0]


@pytest.mark.parametrize('family', DEFAULT_FAMILIES)
@pytest.mark.parametrize(
    'tuner, needs_images', [('LinearProbe', False), ('SideTuning', True), ('PixelBranch', True)]
)
def test_what_acts_on_features_alone_cuts_behind_the_network(family, tuner, needs_images):
    model = classifier(tiny(family), dict(type=tuner)).eval()
    cut = find_cut(model, SHAPE)
    kept = cut.reach(images(5))
    assert (cut.name, kept.shape, cut.needs_images) == ('', (5, model.backbone.num_features), needs_images)
    assert torch.equal(kept, tiny(family).eval()(images(5)))
    assert torch.equal(Resumed(model, cut)(images(5), kept), model(images(5)))


def test_what_is_edited_behind_the_blocks_is_cut_there():
    assert find_cut(classifier(tiny('vit'), dict(type='Partial', names='norm.')), SHAPE).name == 'norm'
    assert (
        find_cut(classifier(tiny('resnet'), dict(type='Adapter', width=2, at='global_pool')), SHAPE).name
        == 'global_pool'
    )


@pytest.mark.parametrize(
    'tuner, edited',
    [
        (dict(type='BitFit'), 'patch_embed.proj'),
        (dict(type='LoRA'), 'blocks.0.attn.qkv'),
        (dict(type='LadderSide'), 'the network'),
        (dict(type='Partial', names='cls_token'), 'the network'),
        (dict(type='LoRA', at=['attn.qkv[1:]', 'stem']), 'patch_embed.proj'),
    ],
)
def test_an_early_edit_leaves_nothing_to_keep(tuner, edited):
    with pytest.raises(NoCutError, match=f"a tuner edits '{edited}', and no block lies before it"):
        find_cut(classifier(tiny('vit'), tuner), SHAPE)


class LongSkip(nn.Module):
    """The last block reads what the first one read, too."""

    def __init__(self):
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 4, 4, 4), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))

    def forward(self, x):
        x = skipped = self.stem(x)
        for block in self.blocks[:2]:
            x = block(x)
        return self.pool(self.blocks[2](x + skipped))


def test_a_network_that_reads_more_than_its_last_block_is_refused():
    torch.manual_seed(0)
    backbone = Backbone(
        LongSkip(), Layout(dict(block=r'blocks\.\d')), Preprocessing(size=(32, 32)), dict(type='test')
    )
    assert find_cut(classifier(backbone, dict(type='Partial', blocks=1)), SHAPE).name == 'blocks.2'
    torch.manual_seed(0)
    backbone = Backbone(
        LongSkip(), Layout(dict(block=r'blocks\.\d')), Preprocessing(size=(32, 32)), dict(type='test')
    )
    with pytest.raises(NoCutError, match='no single tensor is all that the rest of it reads'):
        find_cut(classifier(backbone, dict(type='Partial', blocks=2)), SHAPE)
