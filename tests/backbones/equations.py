"""A vision transformer's equations in plain torch, on numbers in no library's layout: what the foreign
files are held against.
"""

import torch
import torch.nn.functional as F

from tests.nets import images
from vet.core.backbone import Backbone
from vet.registry import BACKBONES

SMALL = dict(embed_dim=32, depth=2, num_heads=2)


def build(name: str, size: int | None = None, **config) -> Backbone:
    """timm's network of that name, small, for images of `size`."""
    kwargs = dict(SMALL, **(dict(img_size=size) if size else {})) | config.pop('kwargs', {})
    return BACKBONES.build(
        dict(dict(type='timm', name=name, pretrained=False, kwargs=kwargs), **config)
    ).eval()


def draw(
    patch=4, grid=4, width=32, depth=2, registers=0, bias=True, pre=False, scales=False, pool=False
) -> dict:
    """A vision transformer's numbers by what they are, in no library's layout; (weight, bias) of each
    layer, float16 can hold all.
    """
    torch.manual_seed(7)

    def numbers(*shape, scale=0.3):
        return (scale * torch.randn(shape)).half().float()

    def norm():
        return (1 + numbers(width)).half().float(), numbers(width)

    def linear(out, inside):
        return numbers(out, inside), numbers(out)

    def attention():
        return {part: linear(width, width) for part in ('q', 'k', 'v', 'out')}

    def mlp():
        return dict(fc1=linear(4 * width, width), fc2=linear(width, 4 * width))

    return dict(
        patch=(numbers(width, 3, patch, patch), numbers(width) if bias else None),
        cls=numbers(width),
        registers=numbers(registers, width),
        class_position=numbers(width),
        positions=numbers(grid, grid, width),
        pre=norm() if pre else None,
        norm=norm(),
        blocks=[
            dict(
                norm1=norm(),
                norm2=norm(),
                **attention(),
                **mlp(),
                **(dict(scale1=numbers(width), scale2=numbers(width)) if scales else {}),
            )
            for _ in range(depth)
        ],
        pool=dict(latent=numbers(width), norm=norm(), **attention(), **mlp()) if pool else None,
        projection=numbers(width, 24),
    )


ACTIVATIONS = dict(GELU=F.gelu, QuickGELU=lambda x: x / (1 + torch.exp(-1.702 * x)))


def doubled(value):
    if isinstance(value, torch.Tensor):
        return value.double()
    if isinstance(value, dict):
        return {key: doubled(part) for key, part in value.items()}
    return type(value)(map(doubled, value)) if isinstance(value, (list, tuple)) else value


def attend(p, queries, x, heads=2):
    """softmax(q k^T / sqrt(d)) v by head, then the output layer"""
    q, k, v = (
        F.linear(source, *p[part]).unflatten(-1, (heads, -1)).transpose(1, 2)
        for part, source in (('q', queries), ('k', x), ('v', x))
    )
    return F.linear(((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2).flatten(2), *p['out'])


@torch.no_grad()
def features(p, x, eps, activation='GELU', class_token=True):
    """x (B, 3, H, W) -> pooled features (B, C), in float64"""
    p, x, act = doubled(p), x.double(), ACTIVATIONS[activation]

    def norm(x, weight_and_bias):
        return F.layer_norm(x, x.shape[-1:], *weight_and_bias, eps)

    def mlp(p, x):
        return F.linear(act(F.linear(x, *p['fc1'])), *p['fc2'])

    x = F.conv2d(x, *p['patch'], stride=p['patch'][0].shape[-1]).flatten(2).mT + p['positions'].flatten(0, 1)
    if class_token:
        first = torch.cat([(p['cls'] + p['class_position'])[None], p['registers']])
        x = torch.cat([first.expand(len(x), -1, -1), x], 1)
    x = norm(x, p['pre']) if p['pre'] else x
    for block in p['blocks']:
        y = norm(x, block['norm1'])
        x = x + block.get('scale1', 1) * attend(block, y, y)
        x = x + block.get('scale2', 1) * mlp(block, norm(x, block['norm2']))
    x = norm(x, p['norm'])
    if not p['pool']:
        return x[:, 0]
    pool = p['pool']
    x = attend(pool, pool['latent'].expand(len(x), 1, -1), x)
    return (x + mlp(pool, norm(x, pool['norm'])))[:, 0]


def close(backbone: Backbone, expected: torch.Tensor, size=16):
    with torch.no_grad():
        given = backbone(images(2, size))
    assert given.shape == expected.shape and expected.abs().max() > 0.1
    assert (given - expected).abs().max() < 1e-5


def resampled(positions, grid, mode, antialias):
    return F.interpolate(positions.permute(2, 0, 1)[None], (grid, grid), mode=mode, antialias=antialias)[
        0
    ].permute(1, 2, 0)
