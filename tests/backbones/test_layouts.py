"""CLIP, DINOv2 and SigLIP from the files of their authors: the features are those of the papers'
equations.
"""

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from tests.backbones.equations import SMALL, build, close, draw, features, resampled
from tests.nets import images
from vet.errors import DataError
from vet.registry import TUNERS
from vet.transforms.torchvision import build_transform


def layer(name, weight_and_bias):
    weight, bias = weight_and_bias
    return {f'{name}.weight': weight} | ({} if bias is None else {f'{name}.bias': bias})


def qkv(block, parts='qkv'):
    return tuple(torch.cat([block[part][i] for part in parts]) for i in (0, 1))


# CLIP ----------------------------------------------------------------------------------------------------------------------


def openai_file(p) -> dict[str, torch.Tensor]:
    """OpenAI's own layout, in float16 with the text tower, as
    torch.jit.load('ViT-L-14.pt').state_dict() gives it.
    """
    state = dict(
        **layer('visual.conv1', p['patch']),
        **layer('visual.ln_pre', p['pre']),
        **layer('visual.ln_post', p['norm']),
    )
    state |= {
        'visual.class_embedding': p['cls'],
        'visual.proj': p['projection'],
        'visual.positional_embedding': torch.cat([p['class_position'][None], p['positions'].flatten(0, 1)]),
    }
    for i, block in enumerate(p['blocks']):
        name, (weight, bias) = f'visual.transformer.resblocks.{i}', qkv(block)
        state |= {f'{name}.attn.in_proj_weight': weight, f'{name}.attn.in_proj_bias': bias}
        for part, own in (
            ('attn.out_proj', 'out'),
            ('ln_1', 'norm1'),
            ('ln_2', 'norm2'),
            ('mlp.c_fc', 'fc1'),
            ('mlp.c_proj', 'fc2'),
        ):
            state |= layer(f'{name}.{part}', block[own])
    text = {
        f'transformer.resblocks.0.{name}': torch.ones(3)
        for name in ('ln_1.weight', 'attn.in_proj_weight', 'mlp.c_fc.bias')
    }
    text |= {
        name: torch.ones(3)
        for name in ('token_embedding.weight', 'positional_embedding', 'text_projection', 'ln_final.weight')
    }
    whole = {
        name: torch.tensor(1.0)
        for name in ('logit_scale', 'input_resolution', 'context_length', 'vocab_size')
    }
    return {name: tensor.half() for name, tensor in (state | text | whole).items()}


@pytest.fixture
def openai(tmp_path):
    """(numbers, path) of a small CLIP."""
    numbers = draw(bias=False, pre=True)
    torch.save(openai_file(numbers), tmp_path / 'ViT.pth')
    return numbers, tmp_path / 'ViT.pth'


CLIP_SMALL = dict(kwargs=dict(patch_size=4, img_size=16))


def test_openais_clip_gives_its_features_and_its_projection(openai):
    numbers, path = openai
    expected = features(numbers, images(2, 16), 1e-5, 'QuickGELU')
    close(build('vit_base_patch16_clip_quickgelu_224.openai', checkpoint=path, **CLIP_SMALL), expected)
    kept = build(
        'vit_large_patch14_clip_quickgelu_224.openai',
        checkpoint=path,
        classifier=True,
        kwargs=dict(CLIP_SMALL['kwargs'], num_classes=24),
    )
    close(kept, expected @ numbers['projection'].double())


def test_a_clip_checkpoint_in_a_network_of_another_activation_is_told(openai):
    numbers, path = openai
    with pytest.warns(
        UserWarning, match=r"trained with QuickGELU.*'vit_base_patch16_clip_quickgelu_224\.openai' has it"
    ):
        backbone = build('vit_base_patch16_clip_224.openai', checkpoint=path, **CLIP_SMALL)
    assert len(backbone.warnings()) == 1 and 'QuickGELU' in backbone.warnings()[0]
    plain = features(numbers, images(2, 16), 1e-5, 'GELU')
    close(backbone, plain)
    assert (plain - features(numbers, images(2, 16), 1e-5, 'QuickGELU')).abs().max() > 0.01


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize(
    'name, kwargs',
    [
        ('vit_base_patch16_clip_quickgelu_224.openai', {}),
        ('vit_base_patch16_clip_224.openai', dict(act_layer='quick_gelu')),
        ('vit_base_patch16_clip_224.laion2b', {}),
    ],
    ids=str,
)
def test_the_right_activation_is_not_warned_of(openai, name, kwargs):
    assert build(name, checkpoint=openai[1], kwargs=CLIP_SMALL['kwargs'] | kwargs).warnings() == []


def test_a_clip_checkpoint_needs_a_tag(openai):
    with pytest.raises(
        DataError, match=r"ViT\.pth is a whole CLIP model.*'vit_large_patch14_clip_quickgelu_224\.openai'"
    ):
        build('vit_large_patch14_clip_quickgelu_224', checkpoint=openai[1], **CLIP_SMALL)


def test_a_clip_checkpoint_of_another_depth_is_refused(openai):
    with pytest.raises(DataError, match=r'missing: blocks\.2\.norm1\.weight'):
        build(
            'vit_base_patch16_clip_quickgelu_224.openai',
            checkpoint=openai[1],
            kwargs=dict(CLIP_SMALL['kwargs'], depth=3),
        )


def test_a_checkpoint_of_other_patches_is_refused(openai):
    """timm would resample their kernels: a ViT-B/32 would pass for a ViT-B/16."""
    with pytest.raises(
        DataError, match=r'ViT\.pth holds .* its patches are of \(4, 4\) pixels, but the network has \(8, 8\)'
    ):
        build(
            'vit_base_patch16_clip_quickgelu_224.openai',
            checkpoint=openai[1],
            kwargs=dict(patch_size=8, img_size=32),
        )


@pytest.mark.filterwarnings('ignore')
def test_openais_torchscript_archive_is_refused_with_the_way_to_its_tensors(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / 'ViT-L-14.pt')
    with pytest.raises(
        DataError, match=r"TorchScript archive.*torch\.jit\.load\('ViT-L-14\.pt'.*'ViT-L-14\.pth'\)"
    ):
        build('vit_large_patch14_clip_quickgelu_224.openai', checkpoint=tmp_path / 'ViT-L-14.pt')


def test_an_evaluation_on_whole_images_is_told(tmp_path):
    kwargs = dict(SMALL, patch_size=4, img_size=16)
    name = 'vit_base_patch16_clip_384.laion2b_ft_in1k'
    save_file(timm.create_model(name, num_classes=0, **kwargs).state_dict(), tmp_path / 'w.safetensors')
    with pytest.warns(UserWarning, match=r'squashes them.*evaluation\.transform=\[dict\(type="Resize"\)\]'):
        backbone = build(name, checkpoint=tmp_path / 'w.safetensors', kwargs=dict(patch_size=4, img_size=16))
    photograph = Image.fromarray(load_sample_images().images[0])
    cfg = dict(
        timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()),
        input_size=(3, 16, 16),
    )
    view = build_transform([dict(type='Resize')], **vars(backbone.preprocessing))
    assert cfg['crop_mode'] == 'squash' and torch.allclose(
        view(photograph), timm.data.create_transform(**cfg)(photograph), atol=1e-6
    )


# DINOv2 --------------------------------------------------------------------------------------------------------------------


def dinov2_file(p) -> dict[str, torch.Tensor]:
    """facebookresearch/dinov2's own layout."""
    positions = torch.cat([p['class_position'][None], p['positions'].flatten(0, 1)])[None]
    state = dict(cls_token=p['cls'][None, None], pos_embed=positions, mask_token=torch.ones(1, len(p['cls'])))
    state |= dict(register_tokens=p['registers'][None]) if len(p['registers']) else {}
    state |= layer('patch_embed.proj', p['patch']) | layer('norm', p['norm'])
    for i, block in enumerate(p['blocks']):
        state |= layer(f'blocks.{i}.attn.qkv', qkv(block)) | layer(f'blocks.{i}.attn.proj', block['out'])
        state |= {f'blocks.{i}.ls{n}.gamma': block[f'scale{n}'] for n in (1, 2)}
        for name in ('norm1', 'norm2', 'mlp.fc1', 'mlp.fc2'):
            state |= layer(f'blocks.{i}.{name}', block[name.removeprefix('mlp.')])
    return state


@pytest.mark.parametrize('grid', [4, 3], ids=['own grid', 'another grid'])
@pytest.mark.parametrize(
    'name, registers', [('vit_small_patch14_dinov2.lvd142m', 0), ('vit_small_patch14_reg4_dinov2.lvd142m', 4)]
)
def test_dinov2s_own_file_gives_its_features(tmp_path, name, registers, grid):
    numbers = draw(registers=registers, scales=True)
    torch.save(dinov2_file(numbers), tmp_path / 'dinov2.pth')
    backbone = build(name, size=4 * grid, checkpoint=tmp_path / 'dinov2.pth', kwargs=dict(patch_size=4))
    if grid != 4:
        numbers['positions'] = resampled(numbers['positions'], grid, 'bicubic', antialias=True)
    close(backbone, features(numbers, images(2, 4 * grid), 1e-6), 4 * grid)
    assert backbone.sites.find('block')[0].grid == (grid, grid) and backbone.preprocessing.size == (
        4 * grid,
        4 * grid,
    )


@pytest.mark.parametrize('size', [12, 20])
def test_timms_own_file_of_another_size_has_its_positions_resampled(tmp_path, size):
    """As 224 pixels of weights trained on 518: the names are the same, the positions alone are not."""
    name = 'vit_small_patch14_reg4_dinov2.lvd142m'
    donor = build(name, size=16, kwargs=dict(patch_size=4)).network
    save_file(donor.state_dict(), tmp_path / 'w.safetensors')
    network = build(name, size=size, checkpoint=tmp_path / 'w.safetensors', kwargs=dict(patch_size=4)).network
    expected = resampled(donor.pos_embed[0].unflatten(0, (4, 4)), size // 4, 'bicubic', antialias=True)
    assert torch.allclose(network.pos_embed[0], expected.flatten(0, 1), atol=1e-6)
    assert all(
        torch.equal(tensor, donor.state_dict()[key])
        for key, tensor in network.state_dict().items()
        if key != 'pos_embed'
    )


def test_images_of_any_size_have_the_grid_of_their_size():
    backbone = build(
        'vit_small_patch14_reg4_dinov2.lvd142m',
        kwargs=dict(dynamic_img_size=True),
        preprocessing=dict(size=[56, 84]),
    )
    site = backbone.sites.find('block')[0]
    assert (site.grid, site.num_prefix_tokens, tuple(site.in_shape)) == ((4, 6), 5, (4 * 6 + 5, 32))


# SigLIP --------------------------------------------------------------------------------------------------------------------

SIGLIP = dict(name='vit_base_patch16_siglip_224.webli', size=16, kwargs=dict(patch_size=4))


def open_clip_file(p) -> dict[str, torch.Tensor]:
    """OpenCLIP's layout of SigLIP: timm's network as visual.trunk, beside the text tower."""
    state = (
        layer('patch_embed.proj', p['patch'])
        | layer('norm', p['norm'])
        | {'pos_embed': p['positions'].flatten(0, 1)[None]}
    )
    for i, block in enumerate(p['blocks']):
        state |= layer(f'blocks.{i}.attn.qkv', qkv(block)) | layer(f'blocks.{i}.attn.proj', block['out'])
        for name in ('norm1', 'norm2', 'mlp.fc1', 'mlp.fc2'):
            state |= layer(f'blocks.{i}.{name}', block[name.removeprefix('mlp.')])
    pool = p['pool']
    state |= {'attn_pool.latent': pool['latent'][None, None]} | layer('attn_pool.kv', qkv(pool, 'kv'))
    for name, own in (('q', 'q'), ('proj', 'out'), ('norm', 'norm'), ('mlp.fc1', 'fc1'), ('mlp.fc2', 'fc2')):
        state |= layer(f'attn_pool.{name}', pool[own])
    text = {
        'text.token_embedding.weight': torch.ones(3, 3),
        'logit_scale': torch.ones(()),
        'logit_bias': torch.ones(()),
    }
    return {f'visual.trunk.{name}': tensor for name, tensor in state.items()} | text


def test_open_clips_siglip_gives_its_features(tmp_path):
    numbers = draw(pool=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in open_clip_file(numbers).items()},
        tmp_path / 'siglip.safetensors',
    )
    expected = features(numbers, images(2, 16), 1e-6, class_token=False)
    close(build(**SIGLIP, checkpoint=tmp_path / 'siglip.safetensors'), expected)


def test_siglips_pool_plays_no_role_of_a_block():
    backbone = build(**SIGLIP)
    roles = backbone.sites.roles()
    for role in ('block', 'attn', 'attn.qkv', 'attn.proj', 'mlp', 'mlp.fc1', 'mlp.fc2', 'weight'):
        assert not any('attn_pool' in name for name in roles[role]) and len(roles[role]) == (
            8 if role == 'weight' else 2
        )
    lora = TUNERS.build(dict(type='LoRA', rank=2, at='attn_pool.kv'))  # by its path it may be had
    lora.attach(backbone)
    assert list(lora.deltas) == ['attn_pool/kv']
