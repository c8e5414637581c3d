"""Which modules of a timm or torchvision network play which role, read off its class names and module paths.

Both libraries name their repeated blocks alike (…Block, …Bottleneck, InvertedResidual, …), and the parts
within them; plain
stacks (VGG, AlexNet) have no such class: each convolution of theirs is a block. A config's `roles` overrule
what is found.
"""

import re
from collections.abc import Mapping

from torch import nn

from vet.core.site import WEIGHTED, Layout
from vet.patterns import NOTHING, fits, require_pattern

BLOCK_CLASS = re.compile(
    r'(.*(Block|Bottleneck|InvertedResidual|MBConv|SeparableConv|EdgeResidual)(V\d|\dd)?'
    r'|Inception[A-E]?|Fire)'
)
ATTENTION = r'(attn|self_attention|attention)'
INNER = {  # below a block
    'attn': ATTENTION,
    'attn.qkv': rf'{ATTENTION}\.(qkv|in_proj|[qkv]_proj|[qkv]|kv)',
    'attn.proj': rf'{ATTENTION}\.(proj|out_proj)',
    'mlp': r'(mlp|block)',
    'mlp.fc1': r'(mlp\.(fc1|0)|block\.3)',  # block.3, block.5: torchvision's ConvNeXt
    'mlp.fc2': r'(mlp\.(fc2|3)|block\.5)',
}


def find_layout(
    network: nn.Module,
    roles: Mapping[str, str] | None = None,
    grid: tuple[int, int] | None = None,
    num_prefix_tokens: int = 0,
    classifier: tuple[str, ...] = (),
) -> Layout:
    """The layout of `network`; `roles` maps names to regular expressions over whole module paths, and
    overrules.

    classifier: the paths of its last layers, where they are kept: they are its 'head', and what it gives are
        'logits'.
    """
    blocks = _blocks(network)
    found = {'head': '|'.join(map(re.escape, classifier)), 'logits': ''} if classifier else {}
    if blocks:
        any_block = '|'.join(map(re.escape, blocks))
        found |= {'block': any_block} | {role: f'({any_block})\\.{inner}' for role, inner in INNER.items()}
        weighted = [name for name, module in network.named_modules() if isinstance(module, WEIGHTED)]
        mlps = {name.rpartition('.')[0] for name in weighted if fits(found['mlp.fc1'], name)}
        found['mlp'] = '|'.join(map(re.escape, sorted(mlps))) or NOTHING
        for role in ('mlp.fc1', 'mlp.fc2'):
            parts = [name for name in weighted if fits(found[role], name) and name.rpartition('.')[0] in mlps]
            found[role] = '|'.join(map(re.escape, parts)) or NOTHING
    for role, pattern in (roles or {}).items():
        require_pattern(pattern, f'model.backbone.roles[{role!r}]')
    return Layout(found | dict(roles or {}), grid, num_prefix_tokens)


def _blocks(network: nn.Module) -> list[str]:
    blocks: list[str] = []
    for name, module in network.named_modules():
        if (
            name
            and BLOCK_CLASS.fullmatch(type(module).__name__)
            and not name.startswith(tuple(f'{b}.' for b in blocks))
        ):
            blocks.append(name)
    return blocks or [
        name
        for name, module in network.named_modules()
        if isinstance(module, WEIGHTED) and re.fullmatch(r'features\.\d+', name)
    ]
