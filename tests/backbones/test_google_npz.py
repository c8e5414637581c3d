"""Google's .npz files: ViT of several releases, and big_vision's SigLIP; the features are those of the
papers' equations.
"""

import numpy as np
import pytest
import torch

from tests.backbones.equations import build, close, features, resampled
from tests.backbones.test_weights import google_arrays
from tests.nets import images
from vet.errors import DataError


def numbers_of(
    arrays, prefix='', attention='MultiHeadDotProductAttention_1', mlp='MlpBlock_3', second='LayerNorm_2'
) -> dict:
    """The numbers in the layout of Google's files: kernels (in, heads, out) or (in, out), (H, W, in,
    out) of the patches.
    """
    a = {name.removeprefix(prefix): torch.from_numpy(array) for name, array in arrays.items()}

    def norm(name):
        return a[f'{name}/scale'], a[f'{name}/bias']

    def part(block, name):
        kernel, bias = a[f'{block}/{attention}/{name}/kernel'], a[f'{block}/{attention}/{name}/bias']
        return (kernel.flatten(0, 1).T if name == 'out' else kernel.flatten(1).T), bias.flatten()

    def attend_and_mlp(block, attention=attention, mlp=mlp):
        return dict(
            {
                own: part(block, name)
                for own, name in (('q', 'query'), ('k', 'key'), ('v', 'value'), ('out', 'out'))
            },
            **{
                f'fc{i + 1}': (a[f'{block}/{mlp}/Dense_{i}/kernel'].T, a[f'{block}/{mlp}/Dense_{i}/bias'])
                for i in (0, 1)
            },
        )

    blocks = sorted(
        {
            name.rpartition('encoderblock_')[0]
            + 'encoderblock_'
            + name.partition('encoderblock_')[2].partition('/')[0]
            for name in a
            if 'encoderblock_' in name and not name.startswith('params')
        }
    )
    positions = a.get('pos_embedding', a.get('Transformer/posembed_input/pos_embedding'))[0]
    grid = int(len(positions) ** 0.5)
    pool = None
    if 'MAPHead_0/probe' in a:
        pool = dict(
            attend_and_mlp('MAPHead_0'), latent=a['MAPHead_0/probe'][0, 0], norm=norm('MAPHead_0/LayerNorm_0')
        )
    return dict(
        patch=(a['embedding/kernel'].permute(3, 2, 0, 1), a['embedding/bias']),
        cls=a.get('cls', torch.zeros(1, 1, 1))[0, 0],
        registers=torch.zeros(0, len(a['embedding/bias'])),
        class_position=positions[0],
        positions=positions[-(grid**2) :].unflatten(0, (grid, grid)),
        pre=None,
        norm=norm('Transformer/encoder_norm'),
        pool=pool,
        blocks=[
            dict(attend_and_mlp(block), norm1=norm(f'{block}/LayerNorm_0'), norm2=norm(f'{block}/{second}'))
            for block in blocks
        ],
    )


def orig_arrays() -> dict[str, np.ndarray]:
    """As Google's first ViTs have it: the head reads tanh of a representation layer."""
    rng = np.random.default_rng(3)
    return google_arrays(rng, depth=2) | {
        'pre_logits/kernel': rng.standard_normal((32, 32)).astype(np.float32),
        'pre_logits/bias': np.ones(32, np.float32),
    }


def without_head(arrays):
    return {name: array for name, array in arrays.items() if not name.startswith('head/')}


GOOGLE = dict(name='vit_base_patch16_224.orig_in21k', kwargs=dict(patch_size=8), size=32)


@pytest.mark.parametrize(
    'arrays',
    [
        google_arrays(np.random.default_rng(3), depth=2),
        orig_arrays(),
        without_head(orig_arrays()),
        {
            f'opt/target/{name}': array
            for name, array in google_arrays(np.random.default_rng(3), depth=2).items()
        },
    ],
    ids=['augreg', 'orig, with a representation layer', 'without a head', 'with the optimizer'],
)
def test_googles_vit_gives_its_features(tmp_path, arrays):
    """Before the representation layer, where there is one: timm has none."""
    np.savez(tmp_path / 'vit.npz', **arrays)
    numbers = numbers_of({name.removeprefix('opt/target/'): array for name, array in arrays.items()})
    close(build(**GOOGLE, checkpoint=tmp_path / 'vit.npz'), features(numbers, images(2, 32), 1e-6), 32)


@pytest.mark.parametrize('grid', [2, 6])
def test_googles_positions_are_resampled_to_another_size(tmp_path, grid):
    arrays = orig_arrays()
    np.savez(tmp_path / 'vit.npz', **arrays)
    numbers = numbers_of(arrays)
    numbers['positions'] = resampled(numbers['positions'], grid, 'bilinear', antialias=False)
    close(
        build(**(GOOGLE | dict(size=8 * grid)), checkpoint=tmp_path / 'vit.npz'),
        features(numbers, images(2, 8 * grid), 1e-6),
        8 * grid,
    )


def test_a_classifier_behind_a_representation_layer_is_refused(tmp_path):
    np.savez(tmp_path / 'vit.npz', **orig_arrays())
    with pytest.raises(
        DataError,
        match=r'vit\.npz .*reads a representation layer \(pre_logits\).*leave model\.backbone\.classifier out',
    ):
        build(
            **(GOOGLE | dict(kwargs=dict(patch_size=8, num_classes=7))),
            classifier=True,
            checkpoint=tmp_path / 'vit.npz',
        )


def test_arrays_of_other_patches_are_refused(tmp_path):
    np.savez(tmp_path / 'vit.npz', **orig_arrays())
    with pytest.raises(
        DataError, match=r'vit\.npz .* its patches are of \(8, 8\) pixels, but the network has \(4, 4\)'
    ):
        build(**(GOOGLE | dict(size=16, kwargs=dict(patch_size=4))), checkpoint=tmp_path / 'vit.npz')


def test_big_visions_siglip_gives_its_features(tmp_path):
    rng, width = np.random.default_rng(4), 32
    renamed = dict(
        MultiHeadDotProductAttention_1='MultiHeadDotProductAttention_0',
        MlpBlock_3='MlpBlock_0',
        LayerNorm_2='LayerNorm_1',
    )
    arrays = without_head(google_arrays(rng, depth=2))
    pool = {
        name.replace('Transformer/encoderblock_0', 'MAPHead_0'): rng.standard_normal(array.shape).astype(
            np.float32
        )
        / 4
        for name, array in arrays.items()
        if name.startswith('Transformer/encoderblock_0/') and 'LayerNorm_2' not in name
    }
    positions = arrays.pop('Transformer/posembed_input/pos_embedding')[:, 1:]
    arrays.pop('cls')
    arrays |= pool | {
        'pos_embedding': positions,
        'MAPHead_0/probe': rng.standard_normal((1, 1, width)).astype(np.float32),
    }
    for old, new in renamed.items():
        arrays = {name.replace(old, new): array for name, array in arrays.items()}
    numbers = numbers_of(
        arrays, attention='MultiHeadDotProductAttention_0', mlp='MlpBlock_0', second='LayerNorm_1'
    )
    text = {f'params/txt/Encoder_0/encoderblock_{i}/LayerNorm_0/scale': np.ones(3) for i in range(3)} | {
        'params/t': np.ones(1)
    }
    np.savez(
        tmp_path / 'siglip.npz', **{f'params/img/{name}': array for name, array in arrays.items()}, **text
    )
    expected = features(numbers, images(2, 32), 1e-6, class_token=False)
    close(
        build(
            'vit_base_patch16_siglip_224.webli',
            size=32,
            kwargs=dict(patch_size=8),
            checkpoint=tmp_path / 'siglip.npz',
        ),
        expected,
        32,
    )
