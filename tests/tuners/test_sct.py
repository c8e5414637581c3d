"""SCT: its update and its choice of channels, written out in float64."""

import copy
import pickle

import pytest
import torch

from tests.nets import images, tiny
from vet.core.backbone import Backbone
from vet.core.tuner import Tuner
from vet.errors import NoSiteError, UserError
from vet.registry import TUNERS


def tuned(family: str, **config: object) -> tuple[Backbone, Tuner]:
    torch.manual_seed(0)
    backbone, tuner = tiny(family).eval(), TUNERS.build(dict(type='SCT', channels=5, **config))
    tuner.attach(backbone)
    backbone.double(), tuner.double()
    return backbone, tuner


@pytest.mark.parametrize(
    'family, name, order',
    [
        ('vit', 'blocks.1', (0, 1, 2)),
        ('swin', 'layers.0.blocks.1', (0, 1, 2, 3)),
        ('resnet', 'layer2.0', (0, 2, 3, 1)),
    ],
)
def test_chosen_channels_alone_change(family, name, order):
    backbone, tuner = tuned(family, scale=0.7, mode='output')
    site, delta = backbone.sites.find(name)[0], tuner.deltas[name.replace('.', '/')]
    delta.index.copy_(torch.tensor([0, 3, 4, 6, 7]))
    with torch.no_grad():
        delta.linear.weight.normal_(), delta.linear.bias.normal_()
    x = torch.randn(2, *site.in_shape, dtype=torch.float64)
    frozen = tiny(family).eval().double().network.get_submodule(name)(x)
    expected = frozen.permute(order).clone()
    for place in torch.cartesian_prod(*map(torch.arange, expected.shape[:-1])).tolist():
        y = expected[tuple(place)]
        y[[0, 3, 4, 6, 7]] += 0.7 * (delta.linear.weight.mv(y[[0, 3, 4, 6, 7]]) + delta.linear.bias)
    assert torch.allclose(site.module(x).permute(order), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize('mode', ['attn', 'mlp'])
def test_the_released_modes_change_the_residual_or_the_ffns_output(mode):
    backbone, tuner = tuned('vit', scale=0.7, mode=mode)
    channels = torch.tensor([0, 3, 4, 6, 7])
    for _, delta in tuner.watched:
        delta.index.copy_(channels)
        with torch.no_grad():
            delta.linear.weight.normal_(std=0.3), delta.linear.bias.normal_(std=0.3)

    def changed(h, delta):
        mixed = torch.zeros(32, 32, dtype=torch.float64)
        mixed[channels[:, None], channels] = delta.linear.weight
        shift = torch.zeros(32, dtype=torch.float64).index_add(0, channels, delta.linear.bias)
        return h + 0.7 * (h @ mixed.T + shift)

    net, x = tiny('vit').eval().double().network, images(2).double()
    h = torch.cat([net.cls_token.expand(2, -1, -1), net.patch_embed(x)], 1) + net.pos_embed
    for i, block in enumerate(net.blocks):
        h = h + block.attn(block.norm1(h))
        if mode == 'attn':
            h = changed(h, tuner.deltas[f'blocks/{i}/norm2'])
            h = h + block.mlp(block.norm2(h))
        else:
            h = h + changed(block.mlp(block.norm2(h)), tuner.deltas[f'blocks/{i}/mlp'])
    assert torch.allclose(backbone(x), net.norm(h)[:, 0], rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    'family, mode, prefix',
    [
        ('vit', 'output', 1),
        ('vit', 'attn', 1),
        ('vit', 'mlp', 1),
        ('deit-distilled', 'attn', 2),
        ('swin', 'output', 0),
        ('resnet', 'output', 0),
    ],
)
def test_prepare_takes_the_channels_of_the_largest_class_mean_norm(family, mode, prefix):
    backbone, tuner = tuned(family, mode=mode)
    x, labels = images(6).double(), torch.tensor([2, 0, 2, 2, 0, 7])
    blocks, outputs = backbone.sites.find('block'), []
    frozen = tiny(family).eval().double()
    for site in blocks:
        if mode == 'attn':  # the sum of block's input and attention is what the norm before the FFN takes
            norm = frozen.network.get_submodule(f'{site.name}.norm2')
            norm.register_forward_hook(lambda _, args, out: outputs.append(args[0].detach()))
            continue
        frozen.network.get_submodule(site.name).register_forward_hook(
            lambda _, args, out: outputs.append(out.detach())
        )
    frozen(x)
    backbone.train()
    tuner.prepare([(x[:4], labels[:4]), (x[4:], labels[4:])])
    assert backbone.training
    for site, y, (watch, delta) in zip(blocks, outputs, tuner.watched):
        y = y.movedim(site.axis, -1)[:, prefix:].flatten(1, -2)
        norms = [
            torch.stack(
                [
                    torch.sqrt(sum((y[b, :, c] ** 2).sum() for b in range(6) if labels[b] == label))
                    for c in range(y.shape[-1])
                ]
            )
            for label in (0, 2, 7)
        ]
        wanted = sorted((sum(norms) / 3).argsort(descending=True)[:5].tolist())
        assert delta.index.tolist() == wanted and watch.watch is None and not delta.rests


def test_queries_and_values_change_in_their_own_channels():
    backbone, tuner = tuned('vit', scale=0.7, mode='qkv')
    plain = tiny('vit').eval().double().network
    labels = torch.tensor([0, 1, 0, 1])
    outputs = []
    hook = plain.blocks[1].attn.qkv.register_forward_hook(
        lambda _, args, y: outputs.append(y[:, 1:].detach())
    )
    plain(images(4).double())
    hook.remove()
    tuner.prepare([(images(4).double(), labels)])
    norms = [outputs[0][labels == label].square().sum((0, 1)).sqrt() for label in (0, 1)]
    importance = torch.stack(norms).mean(0)
    x = torch.randn(2, 17, 32, dtype=torch.float64)
    expected = plain.blocks[1].attn.qkv(x)
    for key, start in (('blocks/1/attn/qkv', 0), ('blocks/1/attn/qkv#1', 64)):  # rows 0-31 and 64-95 of 96
        delta = tuner.deltas[key]
        chosen = importance[start : start + 32].topk(5).indices.sort().values + start
        assert torch.equal(delta.index, chosen)
        with torch.no_grad():
            delta.linear.weight.normal_(), delta.linear.bias.normal_()
        h = expected[..., chosen]
        expected[..., chosen] = h + 0.7 * (h @ delta.linear.weight.T + delta.linear.bias)
    assert torch.allclose(backbone.network.blocks[1].attn.qkv(x), expected, rtol=0, atol=1e-10)


def test_choice_is_saved_copied_and_pickled():
    backbone, tuner = tuned('vit')
    tuner.prepare([(images(4).double(), torch.arange(4))])
    index = tuner.deltas['blocks/1/norm2'].index
    assert index.tolist() != list(range(5))
    assert torch.equal(tuner.state()['deltas.blocks.1.norm2.index'], index)
    for again in (copy.deepcopy(tuner), pickle.loads(pickle.dumps(tuner))):
        assert torch.equal(again.deltas['blocks/1/norm2'].index, index)
        again.prepare([(images(4, seed=5).double(), torch.arange(4))])
    assert torch.equal(tuner.deltas['blocks/1/norm2'].index, index)


def test_papers_count_on_vit_b16(count_on_vit_b16):
    assert count_on_vit_b16(type='SCT', channels=96) == 111_744


@pytest.mark.parametrize(
    'config, family, error, text',
    [
        (
            dict(channels=33),
            'vit',
            NoSiteError,
            r"SCT needs 33 channels or more, but 'blocks\.0' \(Block, which takes \(17, 32\)",
        ),
        (dict(channels=0), 'vit', UserError, r'channels is 0'),
        (dict(channels=2, scale=0), 'vit', UserError, r'scale is 0'),
        (dict(channels=2, images=0), 'vit', UserError, r'images is 0'),
        (
            dict(channels=2, mode='keys'),
            'vit',
            UserError,
            r"mode of (tuner 'SCT'|SCT) 'keys'.*attn, mlp, output, qkv",
        ),
        (dict(channels=2), 'resnet', NoSiteError, r"a block with one FFN .*mode='output' acts behind"),
        (
            dict(channels=2, mode='qkv'),
            'swin',
            NoSiteError,
            "one fused qkv over the whole image in the mode 'qkv'",
        ),
    ],
    ids=str,
)
def test_refusals(config, family, error, text):
    with pytest.raises(error, match=text):
        TUNERS.build(dict(type='SCT', **config)).attach(tiny(family))
