"""What the contract suite runs: every registered tuner, with the arguments below or, lacking an entry, with
its defaults.

A new plugin is tested from its first day without an entry; an entry adds arguments, closed formulas and the
families on which it must work (elsewhere it must refuse). Two tuners of the suite's own cover the edits
`before` and `after`.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.nets import FAMILIES
from vet.core.backbone import Backbone
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.registry import TUNERS

EVERY = tuple(FAMILIES)
ATTENTION = ('vit', 'swin', 'clip', 'deit-distilled', 'torchvision-vit')
NORMED = tuple(family for family in EVERY if family != 'vgg')
TOKENS = ('vit', 'clip', 'deit-distilled', 'torchvision-vit')
CONVOLUTIONAL = ('convnext', 'resnet', 'mobilenet', 'vgg')


@dataclass(frozen=True)
class Case:
    """A tuner and its arguments. on: families where it works (None: it may also refuse). count: the
    closed formula.
    """

    tuner: Any
    config: Callable[[Backbone], dict] = field(default=lambda backbone: {})
    on: tuple[str, ...] | None = None
    count: Callable[[Backbone], int] | None = None
    label: str = ''

    def make(self, backbone: Backbone) -> Tuner:
        return TUNERS.build(dict(type=self.tuner, **self.config(backbone)))

    @property
    def name(self) -> str:
        return self.tuner if isinstance(self.tuner, str) else self.tuner.__name__

    def __str__(self) -> str:
        return f'{self.name}-{self.label}' if self.label else self.name


class Bottleneck(nn.Module):
    """y + U gelu(D y) along the channel axis; U starts at zero."""

    def __init__(self, channels: int, width: int, axis: int):
        super().__init__()
        self.axis = axis
        self.down, self.up = nn.Linear(channels, width), nn.Linear(width, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.up(F.gelu(self.down(y.movedim(self.axis, -1)))).movedim(-1, self.axis)


class AfterBlocks(Tuner):
    """A bottleneck after every block: the edit `after` on tokens and on maps of both channel orders."""

    def __init__(self, at: str = 'block'):
        super().__init__(at)

    def tune(self, site: Site) -> None:
        self.after(site, Bottleneck(site.out_shape[site.axis], 2, site.axis))


class Append(nn.Module):
    """Two learned tokens after the others: (B, N, C) -> (B, N + 2, C)"""

    def __init__(self, channels: int):
        super().__init__()
        self.prompt = nn.Parameter(0.5 * torch.randn(2, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.prompt.expand(len(x), -1, -1).to(x.dtype)], 1)


class Drop(nn.Module):
    """(B, N + 2, C) -> (B, N, C)"""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y[:, :-2]


class PromptBlocks(Tuner):
    """Prompts before every block, dropped after it: the edits `before` and `after` at one site."""

    identity_at_start = False

    def __init__(self, at: str = 'block'):
        super().__init__(at)

    def tune(self, site: Site) -> None:
        if len(site.in_shape) != 2:
            raise refuse(self, site, 'tokens (N, C)')
        self.before(site, Append(site.in_shape[-1]))
        self.after(site, Drop())


# Closed formulas, from the network's own parameter names alone --------------------------------------------------------


def _sizes(backbone: Backbone, pattern: str) -> int:
    return sum(p.numel() for name, p in backbone.network.named_parameters() if re.fullmatch(pattern, name))


def _low_rank(shapes: Iterable[torch.Size], rank: int) -> int:
    return sum(rank * (shape[0] + shape[1:].numel()) for shape in shapes)


def _fused(backbone: Backbone) -> list[torch.Size]:
    return [
        p.shape
        for name, p in backbone.network.named_parameters()
        if re.search(r'(qkv\.|in_proj_)weight$', name)
    ]


def _weights(backbone: Backbone, block: str) -> list[torch.Size]:
    return [
        p.shape
        for name, p in backbone.network.named_parameters()
        if name.startswith(f'{block}.') and name.endswith('weight') and p.dim() in (2, 4)
    ]


def _bottlenecks(backbone: Backbone, role: str, width: int, into: bool = False) -> int:
    """Of adapters behind (or `into`) the sites of a role; with a scale per channel where they go into."""
    channels = [(site.in_shape if into else site.out_shape)[site.axis] for site in backbone.sites.find(role)]
    return sum(2 * width * c + width + c + into * c for c in channels)


def _adapters(backbone: Backbone, *roles: str, width: int = 2, beside: bool = False) -> int:
    """Of adapters behind or `beside` the sites of all roles that the network has; without FFNs, its blocks."""
    found = set(backbone.sites.roles())
    present = {'block' if role == 'mlp' and 'mlp' not in found else role for role in roles}
    sites = [site for role in present & found for site in backbone.sites.find(role)]
    channels = [
        ((site.in_shape if beside else site.out_shape)[site.axis], site.out_shape[site.axis])
        for site in sites
    ]
    return sum(width * (c_in + c_out) + width + c_out for c_in, c_out in channels)


def _norm_names(backbone: Backbone) -> str:
    return '|'.join(
        re.escape(name) + r'\.(weight|bias)'
        for name, module in backbone.network.named_modules()
        if 'Norm' in type(module).__name__
    )


def _entries(backbone: Backbone, block: str) -> list[torch.Size]:
    """The shapes of a transformer block's weights that read normed tokens: of qkv and of fc1."""
    return [shape for shape in _weights(backbone, block) if shape[0] >= 2 * shape[1]]


def _inputs(backbone: Backbone, block: str) -> list[int]:
    return [shape[1] for shape in _entries(backbone, block)]


def _factors(backbone: Backbone, rank: int, middle: int = 2) -> int:
    """2 C r of the ends, and `middle` for each (C, C) matrix."""
    width = min(_fused(backbone)[0])
    matrices = sum(
        shape.numel() // width**2 for block in backbone.sites.blocks for shape in _weights(backbone, block)
    )
    return 2 * width * rank + middle * matrices


def _weighted(backbone: Backbone) -> list[str]:
    """The Linear layers, convolutions and packed attentions of the blocks."""
    return [
        name
        for name, module in backbone.network.named_modules()
        if name.startswith(tuple(f'{block}.' for block in backbone.sites.blocks))
        or name in backbone.sites.blocks
        if isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention)
    ]


def _scales(backbone: Backbone) -> int:
    """A parameter for each channel that the stem, the norms and the blocks' weights give, and each bias
    of theirs.
    """
    stem = next(name for name, module in backbone.network.named_modules() if isinstance(module, nn.Conv2d))
    names = {stem, *_weighted(backbone)}
    weights = [
        p
        for name, p in backbone.network.named_parameters()
        if name.rpartition('.')[0] in names and name.endswith('weight')
    ]
    biases = [
        p
        for name, p in backbone.network.named_parameters()
        if name.rpartition('.')[0] in names and name.endswith('bias')
    ]
    return (
        sum(len(p) for p in weights) + sum(len(p) for p in biases) + _sizes(backbone, _norm_names(backbone))
    )


def _ladder(blocks: int, c: int, r: int) -> int:
    return (blocks + 1) * (c * r + r) + blocks * (12 * r * r + 13 * r + 1) + 2 * r + r * c + c


def _shapes(backbone: Backbone, first: int) -> dict[torch.Size, int]:
    """The shapes of the blocks from `first` on, each with its channels."""
    return {site.out_shape: site.out_shape[site.axis] for site in backbone.sites.find('block')[first:]}


def _fed(backbone: Backbone, first: int) -> list[int]:
    """The channels of the blocks that have a shape of these."""
    shapes = _shapes(backbone, first)
    return [shapes[site.out_shape] for site in backbone.sites.find('block') if site.out_shape in shapes]


def _started(variant: str, backbone: Backbone) -> dict:
    return dict(rank=2, variant=variant, at='*.qkv')


def _last(backbone: Backbone) -> str:
    return re.escape(backbone.sites.blocks[-1]) + r'\..*'


# The last norms; Swin's and ConvNeXt's downsampling norms lie between the last two blocks.
FINAL_NORMS = r'(norm|fc_norm|head\.norm|bn2|encoder\.ln|layers\.1\.downsample\.norm|stages\.3\.downsample\.0)\.(weight|bias)'


CASES: tuple[Case, ...] = (
    Case('LinearProbe', on=EVERY, count=lambda b: 0),
    Case('Full', on=EVERY, count=lambda b: _sizes(b, '.*')),
    Case('Partial', on=EVERY, count=lambda b: _sizes(b, _last(b))),
    Case(
        'Partial',
        lambda b: dict(blocks=2, norm=True),
        on=NORMED,
        label='norm',
        count=lambda b: (
            _sizes(b, _last(b)) + _sizes(b, re.escape(b.sites.blocks[-2]) + r'\..*') + _sizes(b, FINAL_NORMS)
        ),
    ),
    Case('BitFit', on=EVERY, count=lambda b: _sizes(b, r'.*bias')),
    Case(
        'Partial',
        lambda b: dict(names=re.escape(b.sites.blocks[0]) + r'\..*weight'),
        on=EVERY,
        label='names',
        count=lambda b: _sizes(b, re.escape(b.sites.blocks[0]) + r'\..*weight'),
    ),
    Case(
        'Partial',
        lambda b: dict(indices=(-4, None)),
        on=EVERY,
        label='indices',
        count=lambda b: sum(p.numel() for p in list(b.network.parameters())[-4:]),
    ),
    Case('NormTune', on=NORMED, count=lambda b: _sizes(b, _norm_names(b))),
    Case(
        'DiffFit',
        on=ATTENTION,
        count=lambda b: (
            _sizes(b, '.*bias|' + _norm_names(b))
            + sum(
                shape[0]
                for block in b.sites.blocks
                for shape in (_weights(b, block)[-3], _weights(b, block)[-1])
            )
        ),
    ),
    Case('DiffFit', lambda b: dict(outputs='mlp.fc2'), on=(*ATTENTION, 'convnext'), label='mlp'),
    Case('LoRA', lambda b: dict(rank=2), on=ATTENTION, count=lambda b: _low_rank(_fused(b), 2)),
    Case(
        'LoRA',
        lambda b: dict(rank=2, parts='qv', alpha=4, dropout=0.1),
        on=('vit', 'swin', 'clip', 'deit-distilled'),
        label='qv',
        count=lambda b: sum(2 * 2 * (out // 3 + inside) for out, inside in _fused(b)),
    ),
    Case(
        'LoRA',
        lambda b: dict(rank=2, alpha=6, at='weight'),
        on=EVERY,
        label='weight',
        count=lambda b: sum(_low_rank(_weights(b, block), 2) for block in b.sites.blocks),
    ),
    Case(
        'LoRA',
        lambda b: dict(rank=[0] + [i + 1 for i in range(len(b.sites.blocks) - 1)], at='weight'),
        on=EVERY,
        label='by-depth',
        count=lambda b: sum(_low_rank(_weights(b, block), i) for i, block in enumerate(b.sites.blocks)),
    ),
    Case(
        'LoRA',
        lambda b: dict(rank=2, at=['attn.proj', 'mlp.fc1', 'mlp.fc2']),
        on=ATTENTION,
        label='proj-mlp',
        count=lambda b: (
            sum(_low_rank(_weights(b, block), 2) for block in b.sites.blocks) - _low_rank(_fused(b), 2)
        ),
    ),
    Case(
        'LoRA',
        lambda b: dict(rank=2, variant='rslora'),
        on=ATTENTION,
        label='rslora',
        count=lambda b: _low_rank(_fused(b), 2),
    ),
    Case(
        'LoRA',
        lambda b: dict(rank=2, variant='dora', at='weight'),
        on=EVERY,
        label='dora',
        count=lambda b: sum(
            _low_rank(_weights(b, block), 2) + sum(shape[0] for shape in _weights(b, block))
            for block in b.sites.blocks
        ),
    ),
    Case(
        'LoRA',
        lambda b: dict(rank=2, variant='dora', parts='qv'),
        on=ATTENTION,
        label='dora-qv',
        count=lambda b: sum(2 * (2 * (out // 3 + inside) + out // 3) for out, inside in _fused(b)),
    ),
    Case(
        'LoRA',
        lambda b: dict(r=1, lora_alpha=2, variant='pissa', at='weight'),
        on=EVERY,
        label='pissa',
        count=lambda b: sum(_low_rank(_weights(b, block), 1) for block in b.sites.blocks),
    ),
    Case(
        'LoRA',
        lambda b: dict(rank=8, variant='vera', at='weight'),
        on=EVERY,
        label='vera',
        count=lambda b: sum(8 + shape[0] for block in b.sites.blocks for shape in _weights(b, block)),
    ),
    Case(
        'LoRA',
        lambda b: dict(rank=8, variant='vera', parts='qv'),
        on=ATTENTION,
        label='vera-qv',
        count=lambda b: sum(2 * (8 + out // 3) for out, _ in _fused(b)),
    ),
    Case(
        'LoRA',
        lambda b: dict(rank=1, variant='olora', at='weight'),
        on=EVERY,
        label='olora',
        count=lambda b: sum(_low_rank(_weights(b, block), 1) for block in b.sites.blocks),
    ),
    *(
        Case(
            'LoRA',
            partial(_started, variant),
            on=('vit', 'swin', 'clip', 'deit-distilled'),
            label=variant,
            count=lambda b: _low_rank(_fused(b), 2),
        )
        for variant in ('eva', 'corda', 'lora_ga')
    ),
    Case(
        'DyLoRA',
        lambda b: dict(rank=4, at='weight'),
        on=EVERY,
        count=lambda b: sum(_low_rank(_weights(b, block), 4) for block in b.sites.blocks),
    ),
    Case(
        'DyLoRA',
        lambda b: dict(rank=3, alpha=6, schedule='shrink', use=2),
        on=ATTENTION,
        label='shrink',
        count=lambda b: _low_rank(_fused(b), 3),
    ),
    Case(
        'AdaLoRA',
        lambda b: dict(rank=3, target=2, at='weight'),
        on=EVERY,
        count=lambda b: sum(
            _low_rank([shape], 3) + 3 for block in b.sites.blocks for shape in _weights(b, block)
        ),
    ),
    Case(
        'MoLoRA',
        lambda b: dict(rank=2, experts=3),
        on=('vit', 'swin', 'clip', 'deit-distilled'),
        count=lambda b: sum(3 * (2 * (out + inside) + inside) for out, inside in _fused(b)),
    ),
    Case(
        'MoLoRA',
        lambda b: dict(rank=2, experts=3, topk=2, alpha=4, at='weight'),
        label='weight',
        on=('vit', 'swin', 'clip', 'deit-distilled', 'resnet', 'vgg'),
        count=lambda b: sum(
            3 * (2 * (shape[0] + shape[1:].numel()) + shape[1])
            for block in b.sites.blocks
            for shape in _weights(b, block)
        ),
    ),
    Case(
        'HRA',
        lambda b: dict(rank=2, at='weight'),
        on=EVERY,
        count=lambda b: sum(
            2 * shape[1:].numel() for block in b.sites.blocks for shape in _weights(b, block)
        ),
    ),
    Case(
        'HiRA',
        lambda b: dict(rank=2, at='weight'),
        on=EVERY,
        count=lambda b: sum(_low_rank(_weights(b, block), 2) for block in b.sites.blocks),
    ),
    Case(
        'OFT',
        lambda b: dict(block=8),
        on=ATTENTION,
        count=lambda b: sum(inside * 7 // 2 for _, inside in _fused(b)),
    ),
    Case('OFT', lambda b: dict(block=3, terms=5, at='weight'), label='series'),
    Case('FourierFT', lambda b: dict(count=20), on=ATTENTION, count=lambda b: 20 * len(_fused(b))),
    Case('FourierFT', lambda b: dict(count=20, at='weight'), on=EVERY, label='weight'),
    Case(
        'C3A',
        lambda b: dict(block=8),
        on=ATTENTION,
        count=lambda b: sum(out * inside // 8 for out, inside in _fused(b)),
    ),
    Case(
        'RandLoRA',
        lambda b: dict(rank=5, alpha=10, at='weight'),
        on=EVERY,
        count=lambda b: sum(
            -(-min(shape[0], shape[1:].numel()) // 5) * (5 + min(shape[0], shape[1:].numel()))
            for block in b.sites.blocks
            for shape in _weights(b, block)
        ),
    ),
    Case(
        'BOFT',
        lambda b: dict(block=4, factors=3),
        on=ATTENTION,
        count=lambda b: sum(3 * inside * 4 + out for out, inside in _fused(b)),
    ),
    Case('BOFT', lambda b: dict(block=3, at='weight'), label='weight'),
    Case(
        'GLoRA',
        lambda b: dict(rank=2),
        on=ATTENTION,
        count=lambda b: sum(2 * 2 * (out + inside) + 2 * (inside + 1) + 2 for out, inside in _fused(b)),
    ),
    Case(
        'GLoRA',
        lambda b: dict(weight='vector', prompt='vector', bias='vector', at='weight'),
        on=EVERY,
        label='vectors',
    ),
    Case(
        'PACE',
        lambda b: dict(rank=2),
        on=('vit', 'swin', 'clip', 'deit-distilled'),
        count=lambda b: sum(
            2 * (out + 2 * inside) + 2 + out for block in b.sites.blocks for out, inside in _weights(b, block)
        ),
    ),
    Case(
        'MLAE',
        lambda b: dict(rank=4, mask=0.1, at='weight'),
        on=EVERY,
        count=lambda b: sum(
            _low_rank(_weights(b, block), 4) + 4 * len(_weights(b, block)) for block in b.sites.blocks
        ),
    ),
    Case('Hydra', lambda b: dict(width=2), on=ATTENTION),
    Case('Hydra', lambda b: dict(width=2, scale=0.5, at='weight'), on=EVERY, label='weight'),
    Case(
        'SNELL',
        lambda b: dict(rank=4, sparsity=0.5),
        on=ATTENTION,
        count=lambda b: sum(
            4 * (out + inside) + (8 * inside if out == 3 * inside else 0)
            for block in b.sites.blocks
            for out, inside in _weights(b, block)
        ),
    ),
    Case('SNELL', lambda b: dict(rank=2, sparsity=0, at='weight'), on=EVERY, label='dense'),
    Case('PACE', lambda b: dict(rank=2, form='add', at='attn.proj'), label='add'),
    Case('Adapter', lambda b: dict(width=2), on=EVERY, count=lambda b: _adapters(b, 'mlp')),
    Case(
        'Adapter',
        lambda b: dict(width=2, position='before', scale='channel', activation='silu', at='block'),
        on=EVERY,
        label='before',
        count=lambda b: _bottlenecks(b, 'block', 2, into=True),
    ),
    Case('Houlsby', lambda b: dict(width=2), on=EVERY, count=lambda b: _adapters(b, 'attn', 'mlp')),
    Case(
        'Pfeiffer',
        lambda b: dict(width=[8] * len(b.sites.blocks)),  # of few ReLUs, all may be zero at the class token
        on=EVERY,
        count=lambda b: sum(17 * site.out_shape[site.axis] + 8 for site in b.sites.find('block')),
    ),
    Case('Intermediate', lambda b: dict(width=2), on=EVERY, count=lambda b: _adapters(b, 'mlp')),
    Case(
        'AdaptFormer',
        lambda b: dict(width=4, normed=True),
        on=EVERY,
        label='normed',
        count=lambda b: _adapters(b, 'mlp', width=4, beside=True),
    ),
    Case(
        'AdaptFormer',
        lambda b: dict(width=4),  # of two ReLUs at one position, both may be zero for all six images
        on=EVERY,
        count=lambda b: _adapters(b, 'mlp', width=4, beside=True),
    ),
    Case(
        'AdapterPlus',
        lambda b: dict(width=2),
        on=EVERY,
        count=lambda b: (
            _bottlenecks(b, 'block', 2) + sum(site.out_shape[site.axis] for site in b.sites.find('block'))
        ),
    ),
    Case(
        'VPT',
        lambda b: dict(length=[0] + [2] * (len(b.sites.blocks) - 1)),
        on=TOKENS,
        count=lambda b: 2 * 32 * (len(b.sites.blocks) - 1),
    ),
    Case(
        'VPT', lambda b: dict(length=2, depth='shallow'), on=TOKENS, label='shallow', count=lambda b: 2 * 32
    ),
    Case('BorderPrompt', lambda b: dict(pad=3), on=CONVOLUTIONAL, count=lambda b: 3 * (6 * 38 + 6 * 32)),
    Case(
        'Prefix',
        lambda b: dict(length=2),
        on=('vit', 'clip', 'deit-distilled'),
        count=lambda b: 3 * 2 * 2 * 32,
    ),
    Case(
        'IA3',
        on=ATTENTION,
        count=lambda b: (
            sum(2 * inside for _, inside in _fused(b))
            + sum(_weights(b, block)[-1][1] for block in b.sites.blocks)
        ),
    ),
    Case('IA3', lambda b: dict(at='weight'), on=EVERY, label='weight'),
    Case('SSF', on=EVERY, count=lambda b: _scales(b)),
    Case('SSF', lambda b: dict(std=0, at=['stem', 'weight']), on=EVERY, label='identity'),
    Case('RLRR', on=EVERY),
    Case(
        'RLRR',
        lambda b: dict(at='weight'),
        on=EVERY,
        label='weight',
        count=lambda b: (
            sum(
                shape[0] + shape[1] * (3 if shape[0] == 3 * shape[1] else 1)
                for block in b.sites.blocks
                for shape in _weights(b, block)
            )
            + sum(_sizes(b, re.escape(name) + r'\.([a-z_]+_)?bias') for name in _weighted(b))
        ),
    ),
    Case(
        'Convpass',
        lambda b: dict(width=2, dropout=0.0),
        on=(*TOKENS, *CONVOLUTIONAL),
        count=lambda b: (
            _adapters(b, 'attn', 'mlp', beside=True)
            + (9 * 4 + 2) * len(b.sites.find(['attn', 'mlp or block'], may_miss=['attn']))
        ),
    ),
    Case(
        'UTuning',
        lambda b: dict(width=2),
        on=EVERY,
        count=lambda b: _adapters(b, 'attn', 'mlp', 'block', beside=True),
    ),
    Case('Mona', lambda b: dict(width=4, dropout=0), on=EVERY),
    Case(
        'Compacter',
        lambda b: dict(width=4, products=2),
        on=EVERY,
        count=lambda b: (
            8
            + sum(
                2 * (channels + 4) + 4 + channels
                for role in ('attn', 'mlp' if 'mlp' in b.sites.roles() else 'block')
                if role in b.sites.roles()
                for site in b.sites.find(role)
                for channels in (site.out_shape[site.axis],)
            )
        ),
    ),
    Case('Mona', lambda b: dict(width=4), on=EVERY, label='dropout'),
    Case('DTL', on=(*ATTENTION, 'convnext'), count=lambda b: 4 * sum(_fed(b, len(b.sites.blocks) // 2))),
    Case(
        'DTL',
        lambda b: dict(rank=1, first=0, kernel=3),
        on=(*ATTENTION, 'convnext'),
        label='plus',
        count=lambda b: 2 * sum(_fed(b, 0)) + 9 * sum(_shapes(b, 0).values()),
    ),
    Case('SCT', lambda b: dict(channels=4), count=lambda b: (16 + 4) * len(b.sites.blocks)),
    Case(
        'SCT',
        lambda b: dict(channels=4, mode='mlp'),
        label='mlp',
        count=lambda b: (16 + 4) * len(b.sites.blocks),
    ),
    Case(
        'SCT',
        lambda b: dict(channels=4, mode='qkv'),
        on=('vit', 'clip', 'deit-distilled'),
        label='qkv',
        count=lambda b: 2 * (16 + 4) * len(b.sites.blocks),
    ),
    Case(
        'SCT',
        lambda b: dict(channels=4, mode='output'),
        on=EVERY,
        label='output',
        count=lambda b: (16 + 4) * len(b.sites.blocks),
    ),
    Case('GPS', on=EVERY, count=lambda b: _scales(b) - _sizes(b, _norm_names(b))),
    Case(
        'GPS',
        lambda b: dict(k=2, bias=False, at='weight'),
        on=EVERY,
        label='weight',
        count=lambda b: sum(2 * shape[0] for block in b.sites.blocks for shape in _weights(b, block)),
    ),
    Case('SideTuning', on=EVERY, count=lambda b: 26_033 + 65 * b.num_features),
    Case(
        'SideTuning',
        lambda b: dict(
            side=dict(
                type='timm',
                name='resnet18',
                pretrained=False,
                kwargs=dict(layers=(1, 1, 1, 1), channels=(4, 4, 8, 8)),
            )
        ),
        on=EVERY,
        label='resnet',
    ),
    Case(
        'LadderSide',
        lambda b: dict(reduction=4, heads=2),
        on=TOKENS,
        count=lambda b: _ladder(len(b.sites.blocks), 32, 8),
    ),
    Case(
        'ResTuningBypass',
        lambda b: dict(width=4),
        on=TOKENS,
        count=lambda b: len(b.sites.blocks) * 2 * (2 * 32 * 4 + 4 + 32),
    ),
    Case(
        'PixelBranch',
        lambda b: dict(rank=2, scale=0.5),
        on=EVERY,
        count=lambda b: 2 * (3 * 32 * 32 + b.num_features),
    ),
    Case('FacT', lambda b: dict(rank=2), on=TOKENS, count=lambda b: _factors(b, 2) + 2**3),
    Case(
        'FacT',
        lambda b: dict(rank=2, variant='tt', scale=0.5),
        on=TOKENS,
        label='tt',
        count=lambda b: _factors(b, 2, middle=2 * 2),
    ),
    Case(
        'LoHa',
        lambda b: dict(rank=2, at='weight'),
        on=EVERY,
        count=lambda b: sum(2 * _low_rank(_weights(b, block), 2) for block in b.sites.blocks),
    ),
    Case('LoKr', lambda b: dict(rank=1, alpha=2, at='weight'), on=EVERY),
    Case(
        'LoKr',
        lambda b: dict(rank=1, factor=4),
        on=ATTENTION,
        label='factor',
        count=lambda b: sum(4 * 4 + out // 4 + inside // 4 for out, inside in _fused(b)),
    ),
    Case(
        'RepAdapter',
        lambda b: dict(width=4),
        on=ATTENTION,
        count=lambda b: sum(
            4 * inside + 4 * inside // 2 + 4 + inside
            for block in b.sites.blocks
            for inside in _inputs(b, block)
        ),
    ),
    Case(
        'RepAdapter',
        lambda b: dict(width=4, groups=1, scale=0.5, at='mlp.fc1'),
        on=(*ATTENTION, 'convnext'),
        label='mlp',
    ),
    Case(
        'ARC',
        lambda b: dict(width=3),
        on=ATTENTION,
        count=lambda b: (
            sum(3 + inside for block in b.sites.blocks for inside in _inputs(b, block))
            + sum(
                3 * inside
                for _, inside in {shape for block in b.sites.blocks for shape in _entries(b, block)}
            )
        ),
    ),
    Case('ARC', lambda b: dict(width=3, at='mlp.fc1'), on=(*ATTENTION, 'convnext'), label='mlp'),
    Case(AfterBlocks, on=EVERY),
    Case(PromptBlocks, on=TOKENS),
)
CASES += tuple(Case(name) for name in TUNERS.names() if name not in {case.name for case in CASES})
