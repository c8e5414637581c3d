"""VPT against the tokens' own computation written out in float64, and against the published counts."""

import copy
import functools
import math

import pytest
import torch
from timm.layers import BatchNormAct2d
from timm.models import gemma4_vit
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from timm.models.vision_transformer_hybrid import HybridEmbed
from timm.models.volo import VOLO

from tests.contract.runs import logits
from tests.nets import VIT, images, randomised, timm_net, tiny
from vet.backbones.roles import find_layout
from vet.core.backbone import Backbone, Preprocessing
from vet.core.tuner import Tuner
from vet.errors import NoSiteError, UnknownNameError, UserError
from vet.registry import TUNERS


def vpt(**config: object) -> Tuner:
    return TUNERS.build(dict(type='VPT', **config))


def tuned(family: str = 'vit', **config: object) -> tuple[Backbone, Tuner]:
    torch.manual_seed(0)
    backbone, tuner = tiny(family).eval(), vpt(**config)
    tuner.attach(backbone)
    backbone.double(), tuner.double().eval()
    return backbone, tuner


def block_on(part, x_BNC: torch.Tensor) -> torch.Tensor:
    """A ViT block written out, on any number of tokens."""
    attn, d = part.attn, part.attn.head_dim
    q, k, v = (part.norm1(x_BNC) @ attn.qkv.weight.T + attn.qkv.bias).chunk(3, -1)
    heads = [
        torch.softmax(q[..., s] @ k[..., s].mT / math.sqrt(d), -1) @ v[..., s]
        for s in (slice(h * d, (h + 1) * d) for h in range(attn.num_heads))
    ]
    x_BNC = x_BNC + torch.cat(heads, -1) @ attn.proj.weight.T + attn.proj.bias
    return x_BNC + part.mlp(part.norm2(x_BNC))


def features(backbone: Backbone, prompts: dict[int, torch.Tensor], deep: bool) -> torch.Tensor:
    """The paper's order: class token, prompts, patches."""
    net, x = backbone.network, images(2).double()
    x = net.patch_embed(x)
    x = torch.cat([net.cls_token.expand(len(x), -1, -1), x], 1) + net.pos_embed
    added = 0
    for i, part in enumerate(net.blocks):
        if i in prompts:
            x = torch.cat([x[:, :1], prompts[i].expand(len(x), -1, -1), x[:, 1 + added :]], 1)
            added = len(prompts[i])
        elif deep:
            x, added = torch.cat([x[:, :1], x[:, 1 + added :]], 1), 0
        x = block_on(part, x)
    return net.norm(x)[:, 0]


def prompts_of(tuner: Tuner) -> dict[int, torch.Tensor]:
    return {
        int(name.split('/')[1]): delta.prompts.detach()
        for name, delta in tuner.deltas.items()
        if hasattr(delta, 'prompts')
    }


@pytest.mark.parametrize(
    'config', [dict(length=3), dict(length=[2, 0, 4]), dict(length=3, depth='shallow')], ids=str
)
def test_prompts_are_tokens_among_the_others(config):
    backbone, tuner = tuned(**config)
    expected = features(backbone, prompts_of(tuner), deep='depth' not in config)
    assert torch.allclose(backbone(images(2).double()), expected, rtol=0, atol=1e-8)
    assert not torch.allclose(expected, features(backbone, {}, True), atol=1e-3)


def cait() -> Backbone:
    """Two blocks of patches and two blocks in which the class token alone asks."""
    return randomised(timm_net('cait_xxs24_224', **VIT))


def parallel() -> Backbone:
    network = VisionTransformer(**VIT, num_classes=0, block_fn=ParallelScalingBlock)
    return randomised(
        Backbone(
            network,
            find_layout(network, num_prefix_tokens=1),
            Preprocessing(size=(32, 32)),
            dict(type='test', name='parallel'),
        )
    )


@pytest.mark.parametrize('depth', ['deep', 'shallow'])
@pytest.mark.parametrize('length', [1, 3])
def test_prompts_in_cait(depth, length):
    backbone = cait().eval()
    net, x = backbone.network, images(2)
    blocks, last = list(net.blocks), list(net.blocks_token_only)
    tuner = vpt(length=length, depth=depth)
    tuner.attach(backbone)
    prompts = [
        delta.prompts.detach().clone() for name, delta in tuner.deltas.items() if hasattr(delta, 'prompts')
    ]
    assert len(prompts) == (len(blocks) + len(last) if depth == 'deep' else 1)
    tuned = logits(backbone, x)
    tuner.detach()
    with torch.no_grad():
        tokens = net.patch_embed(x) + net.pos_embed
        count = tokens.shape[1]
        for i, part in enumerate(blocks):
            if depth == 'deep' or i == 0:
                tokens = torch.cat([tokens[:, :count], prompts[i].expand(2, -1, -1)], 1)
            tokens = part(tokens)
        tokens, token = tokens[:, :count], net.cls_token.expand(2, -1, -1)
        for i, part in enumerate(last, len(blocks)):
            more = [prompts[i].expand(2, -1, -1)] if depth == 'deep' else []
            token = part(torch.cat([tokens, *more], 1), token)
        expected = net.norm(torch.cat([token, tokens], 1))[:, 0]
    assert torch.allclose(tuned, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(tuned, logits(backbone, x), atol=1e-3)


def hybrid() -> Backbone:
    """A ViT behind a ResNet, whose two blocks make maps."""
    stem = ResNetV2((1, 1), (16, 32), num_classes=0, global_pool='', stem_chs=8, norm_layer=BatchNormAct2d)
    embed = functools.partial(HybridEmbed, backbone=stem)
    network = VisionTransformer(**{**VIT, 'patch_size': 1}, num_classes=0, embed_layer=embed)
    layout = find_layout(network, num_prefix_tokens=1)
    return randomised(
        Backbone(network, layout, Preprocessing(size=(32, 32)), dict(type='test', name='hybrid'))
    )


@pytest.mark.parametrize('make', [parallel, hybrid])
@pytest.mark.parametrize('depth', ['deep', 'shallow'])
def test_prompts_beside_the_tokens_of_other_vits(depth, make):
    backbone = make().eval()
    net, x = backbone.network, images(2)
    tuner = vpt(length=3, depth=depth)
    tuner.attach(backbone)
    prompts, tuned = prompts_of(tuner), logits(backbone, x)
    tuner.detach()
    with torch.no_grad():
        tokens = net.patch_embed(x)
        tokens = torch.cat([net.cls_token.expand(2, -1, -1), tokens], 1) + net.pos_embed
        count = tokens.shape[1]
        for i, part in enumerate(net.blocks):
            if i in prompts:
                tokens = torch.cat([tokens[:, :count], prompts[i].expand(2, -1, -1)], 1)
            tokens = part(tokens)
        expected = net.norm(tokens)[:, 0]
    assert torch.allclose(tuned, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(tuned, logits(backbone, x), atol=1e-3)


def gemma() -> Backbone:
    kwargs = dict(patch_size=8, embed_dim=32, depth=2, num_heads=2, head_dim=16, intermediate_size=64)
    return timm_net('gemma4_vit_167m', 48, **kwargs)


ROTARY = {
    name: functools.partial(timm_net, name, 32, **{**VIT, **kwargs})
    for name, kwargs in {
        'eva02_tiny_patch14_224': {},
        'vit_small_patch16_rope_mixed_224': {},  # each block has its own angles
        'vit_small_patch16_dinov3': {},
        'deepseek_vit_412m': {},
        'qwen3_vit_88m': {},
    }.items()
}


def beside_the_class_tokens(net, prompts: list[torch.Tensor], deep: bool) -> None:
    """Prompts stand behind the class tokens, and timm's attention counts them as tokens that it does not
    rotate.
    """
    for i, block in enumerate(net.blocks):

        def forward(x, rope, i=i, block=block, **more):
            K, p = block.attn.num_prefix_tokens, prompts[i if deep else 0]
            if deep or i == 0:
                x = torch.cat([x[:, :K], p.expand(len(x), -1, -1), x[:, K:]], 1)
            block.attn.num_prefix_tokens += len(p)
            x = type(block).forward(block, x, rope=rope, **more)
            block.attn.num_prefix_tokens = K
            is_last = i == len(net.blocks) - 1
            return torch.cat([x[:, :K], x[:, K + len(p) :]], 1) if deep or is_last else x

        block.forward = forward


@pytest.mark.parametrize('depth', ['deep', 'shallow'])
@pytest.mark.parametrize('net', ROTARY)
def test_prompts_are_not_rotated(net, depth):
    backbone = randomised(ROTARY[net]()).eval()
    frozen = logits(backbone, images(2))
    tuner = vpt(length=3, depth=depth)
    tuner.attach(backbone)
    prompts = [delta.prompts.detach().clone() for delta in tuner.deltas.values() if hasattr(delta, 'prompts')]
    found = logits(backbone, images(2))
    tuner.detach()
    assert torch.equal(logits(backbone, images(2)), frozen)
    beside_the_class_tokens(getattr(backbone.network, 'encoder', backbone.network), prompts, depth == 'deep')
    assert torch.allclose(found, logits(backbone, images(2)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, frozen, atol=1e-3)


@pytest.mark.parametrize('depth', ['deep', 'shallow'])
def test_prompts_are_not_rotated_by_cosines_and_sines(depth, monkeypatch):
    backbone, x = randomised(gemma()).eval(), images(2, 48)
    tuner = vpt(length=3, depth=depth)
    tuner.attach(backbone)
    prompts = [delta.prompts.detach().clone() for delta in tuner.deltas.values() if hasattr(delta, 'prompts')]
    found, blocks = logits(backbone, x), backbone.network.encoder.blocks
    tuner.detach()
    rotate = gemma4_vit.apply_multidimensional_rope
    monkeypatch.setattr(
        gemma4_vit,
        'apply_multidimensional_rope',
        lambda q, cos, *more, **named: torch.cat(
            [rotate(q[:, : cos.shape[1]], cos, *more, **named), q[:, cos.shape[1] :]], 1
        ),
    )
    for i, block in enumerate(blocks):
        last = depth == 'deep' or i == len(blocks) - 1
        if depth == 'deep' or i == 0:
            block.register_forward_pre_hook(
                lambda _, args, i=i: (torch.cat([args[0], prompts[i].expand(2, -1, -1)], 1), *args[1:])
            )
        block.register_forward_hook(lambda _, args, out, last=last: out[:, :-3] if last else out)
    assert torch.allclose(found, logits(backbone, x), rtol=1e-4, atol=1e-5)


def relpos(name: str, **settings: object) -> Backbone:
    backbone = timm_net(name, 32, **{**VIT, **settings})
    with torch.no_grad():
        for parameter in backbone.parameters():  # timm starts the tables of BEiT at zero
            parameter.add_(0.3 * torch.randn_like(parameter))
    return backbone.eval()


def bias_of(net, i: int) -> torch.Tensor:
    """The bias (heads, N, N) of relative positions that block i adds to its scores, entry by entry."""
    attn = net.blocks[i].attn
    if getattr(attn, 'relative_position_bias_table', None) is not None:
        table, index = attn.relative_position_bias_table, attn.relative_position_index
        return torch.stack([torch.stack([table[j] for j in row]) for row in index]).permute(2, 0, 1)
    if getattr(net, 'rel_pos_bias', None) is not None:
        return net.rel_pos_bias()
    return (getattr(attn, 'rel_pos', None) or net.shared_rel_pos).get_bias()[0]


def relative_block(block, x_BNC: torch.Tensor, bias_HNN: torch.Tensor) -> torch.Tensor:
    """A block with relative positions, written out. Tokens behind those of the bias have no position."""
    attn, (B, N, C), H = block.attn, x_BNC.shape, len(bias_HNN)
    qkv = block.norm1(x_BNC) @ attn.qkv.weight.T
    if getattr(attn, 'q_bias', None) is not None:
        qkv = qkv + torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    elif attn.qkv.bias is not None:
        qkv = qkv + attn.qkv.bias
    q, k, v = qkv.view(B, N, 3, H, C // H).permute(2, 0, 3, 1, 4)
    if hasattr(attn, 'q_norm'):
        q, k = attn.q_norm(q), attn.k_norm(k)
    scores, known = q @ k.mT / math.sqrt(C // H), bias_HNN.shape[-1]
    scores[:, :, :known, :known] += bias_HNN
    heads = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, N, C)
    first, second = (_scale(block, i) for i in (1, 2))
    x_BNC = x_BNC + first * attn.proj(heads)
    return x_BNC + second * block.mlp(block.norm2(x_BNC))


def _scale(block, i: int) -> torch.Tensor | int:
    """The factor of the i-th residual branch: BEiT's gamma_i, or LayerScale."""
    gamma = block._parameters.get(f'gamma_{i}')
    return getattr(getattr(block, f'ls{i}', None), 'gamma', 1) if gamma is None else gamma


RELATIVE = {
    'beit': lambda: relpos('beit_base_patch16_224'),
    'beit-shared': lambda: relpos(
        'beit_base_patch16_224', use_rel_pos_bias=False, use_shared_rel_pos_bias=True
    ),
    'relpos': lambda: relpos('vit_relpos_medium_patch16_cls_224'),
    'relpos-shared': lambda: relpos('vit_srelpos_small_patch16_224'),
}


@pytest.mark.parametrize('depth', ['deep', 'shallow'])
@pytest.mark.parametrize('family', RELATIVE)
def test_prompts_have_no_relative_position(family, depth):
    backbone, x = RELATIVE[family](), images(2)
    net, frozen = backbone.network, logits(backbone, x)
    tuner = vpt(length=3, depth=depth)
    tuner.attach(backbone)
    prompts = [delta.prompts.detach() for delta in tuner.deltas.values() if hasattr(delta, 'prompts')]
    seen: dict[str, torch.Tensor] = {}
    net.blocks[0].register_forward_pre_hook(lambda _, args: seen.update(start=args[0][:, :-3]), prepend=False)
    net.blocks[-1].register_forward_hook(lambda _, args, out: seen.update(end=out))
    logits(backbone, x)
    tuner.detach()
    tokens, count = seen['start'], seen['start'].shape[1]
    with torch.no_grad():
        for i, block in enumerate(net.blocks):
            if depth == 'deep' or i == 0:
                tokens = torch.cat([tokens[:, :count], prompts[i].expand(2, -1, -1)], 1)
            tokens = relative_block(block, tokens, bias_of(net, i))
    assert torch.allclose(seen['end'], tokens[:, :count], rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(backbone, x), frozen)


def test_two_sets_of_prompts_beside_relative_positions_come_off_in_any_order():
    backbone, x = RELATIVE['beit'](), images(2)
    frozen = logits(backbone, x)
    first, second = vpt(length=3), vpt(length=2)
    first.attach(backbone)
    alone = logits(backbone, x)
    second.attach(backbone)
    assert not torch.allclose(logits(backbone, x), alone)
    copied = copy.deepcopy(backbone)
    second.rest()
    assert torch.equal(logits(backbone, x), alone)
    second.resume()
    assert torch.equal(logits(copied, x), logits(backbone, x))
    first.detach()
    second.detach()
    assert torch.equal(logits(backbone, x), frozen)


def test_attention_between_maps_before_the_tokens_is_no_convolutional_stem():
    """VOLO has class tokens in its last two blocks only."""
    network = VOLO(
        (1, 1, 1, 1),
        img_size=64,
        num_classes=0,
        stem_hidden_dim=8,
        embed_dims=(16,) * 4,
        num_heads=(2,) * 4,
        downsamples=(True, False, False, False),
        outlook_attention=(True, False, False, False),
        post_layers=('ca', 'ca'),
    )
    described = Preprocessing(size=(64, 64)), dict(type='test', name='volo')
    with pytest.raises(NoSiteError, match=r"VPT needs tokens .* 'network\.0\.0' \(Outlooker"):
        vpt(length=2).attach(Backbone(network, find_layout(network), *described))


def test_a_grid_of_relative_places_is_no_plain_attention():
    """16 tokens and 9 prompts would be a grid of 5 x 5 in ConViT, without an error."""
    backbone = timm_net('convit_tiny', img_size=32, patch_size=8, embed_dim=32, num_heads=4, depth=2)
    with pytest.raises(NoSiteError, match="VPT needs tokens .*free of 'rel_indices'"):
        vpt(length=9).attach(backbone)


@pytest.mark.parametrize('depth', ['deep', 'shallow'])
@pytest.mark.parametrize('family', ['clip', 'deit-distilled', 'torchvision-vit'])
def test_every_block_sees_the_prompts_and_what_follows_does_not(family, depth):
    backbone, seen = tiny(family).eval(), []
    tuner = vpt(length=3, depth=depth)
    tuner.attach(backbone)
    for site in backbone.sites.find(['attn', 'norm']):
        site.module.register_forward_hook(
            lambda _, args, out, name=site.name: seen.append((name, args[0].shape[1]))
        )
    backbone(images(2))
    plain = backbone.sites.find('block')[0].in_shape[0]
    for name, tokens in seen:
        assert tokens == plain + 3 * name.startswith(('blocks.', 'encoder.layers.')), name


def test_start_is_uniform_within_the_papers_bound_and_does_not_decay():
    tuner = vpt(length=500)
    tuner.attach(randomised(timm_net('vit_tiny_patch16_224', **VIT)))
    bound = math.sqrt(6 / (3 * 8 * 8 + 32))
    for _, prompts in tuner.trainable():
        assert prompts.no_weight_decay
        assert prompts.abs().max() <= bound and prompts.std().item() == pytest.approx(
            bound / 3**0.5, rel=0.02
        )


def test_dropout_acts_in_training_alone():
    backbone, tuner = tuned(length=3, dropout=0.5)
    x = images(2).double()
    assert torch.equal(backbone(x), backbone(x))
    tuner.train()
    assert not torch.equal(backbone(x), backbone(x))


@pytest.mark.parametrize(
    'config, count',
    [
        (dict(length=1), 9_216),
        (dict(length=10), 92_160),
        (dict(length=[0] * 11 + [5]), 3_840),
        (dict(length=1, depth='shallow'), 768),
        (dict(length=50, depth='shallow'), 38_400),
    ],
    ids=str,
)
def test_published_counts_on_vit_b16(count_on_vit_b16, config, count):
    assert count_on_vit_b16(type='VPT', **config) == count


def mixer() -> Backbone:
    network = MlpMixer(num_classes=0, img_size=32, patch_size=8, embed_dim=32, num_blocks=2)
    return Backbone(
        network, find_layout(network), Preprocessing(size=(32, 32)), dict(type='test', name='mixer')
    )


@pytest.mark.parametrize(
    'net, text',
    [
        (
            lambda: tiny('resnet'),
            r"tokens \(N, C\).* \(for convolutional networks see BorderPrompt\), but 'layer1\.0' \(BasicBlock, which takes \(\d+, 8, 8\)",
        ),
        (lambda: tiny('vgg'), r"'features\.0' \(Conv2d, which takes \(3, 32, 32\)"),
        (
            lambda: tiny('swin'),
            r"free of 'window_size', but 'layers\.0\.blocks\.0' \(SwinTransformerBlock, which takes \(8, 8, 16\)",
        ),
        (mixer, r"under attention.*'blocks\.0' \(MixerBlock, which takes \(16, 32\)"),
    ],
    ids=['resnet', 'vgg', 'swin', 'mixer'],
)
@pytest.mark.parametrize('depth', ['deep', 'shallow'])
def test_refuses_what_is_not_tokens_under_plain_attention(net, text, depth):
    with pytest.raises(NoSiteError, match='VPT needs ' + '.*' + text):
        vpt(depth=depth).attach(net())


@pytest.mark.parametrize(
    'config, error, text',
    [
        (dict(length=0), UserError, r'length is 0; it must be at least 1'),
        (dict(length=[1, 2]), UserError, r'length has 2 values, but the backbone has 3 blocks'),
        (
            dict(length=[1, 2, 3], depth='shallow'),
            UserError,
            r'length is \[1, 2, 3\]; a shallow prompt has one length',
        ),
        (dict(depth='middle'), UnknownNameError, r"depth of tuner 'VPT' 'middle'.*deep, shallow"),
        (dict(dropout=-0.1), UserError, r'dropout is -0\.1'),
    ],
    ids=str,
)
def test_refuses_nonsense(config, error, text):
    with pytest.raises(error, match=text):
        vpt(**config).attach(tiny('vit'))
