"""Finds the blocks of a timm or torchvision network, by class names and by lists of modules.

Both libraries give similar names to repeated blocks (…Block, …Bottleneck, InvertedResidual, …), or keep them
in the lists of stages. Plain stacks (VGG, AlexNet) have neither: there, each layer is a block. The dry run
finds the roles within blocks, see core.inner. The `roles` of a config replace the roles that are found.
"""

import re
from collections.abc import Mapping

from torch import nn

from vet.core.flow import WEIGHTED
from vet.core.site_map import Layout
from vet.patterns import require_pattern

BLOCK_CLASS = re.compile(
    r'(?!StageBlock)\w*(Block|Bottle\dneck|Bottleneck|InvertedResidual|MBConv|EdgeResidual)\w*'
    r'|DepthwiseSeparableConv\w*|DlaBasic|\w*Cell\w*|Inception[A-E]?|Fire'
)
# these hold no blocks
OUTSIDE = re.compile(r'stem|neck|head|decode_head|classifier|final_conv|downsample\w*')
PLAIN = re.compile(r'features\.\d+|classifier\.\d+|pre_logits\.fc\d')  # the layers of plain stacks
LISTS = (nn.Sequential, nn.ModuleList)
LEAST = 0.5  # of a list's weights, that the blocks found below its entries hold; else the entries are blocks


def find_layout(
    network: nn.Module,
    roles: Mapping[str, str] | None = None,
    grid: tuple[int, int] | None = None,
    num_prefix_tokens: int = 0,
    classifier: tuple[str, ...] = (),
) -> Layout:
    """The layout of `network`.

    roles: role names to regular expressions for whole module paths. They replace the roles that are found.
    classifier: the paths of the kept classifier's layers, which get the role 'head'. The whole network gets
        'logits'.
    """
    blocks = _blocks('', network) or [
        name
        for name, module in network.named_modules()
        if isinstance(module, WEIGHTED) and PLAIN.fullmatch(name) and name not in classifier
    ]
    found = {'head': '|'.join(map(re.escape, classifier)), 'logits': ''} if classifier else {}
    if blocks:
        found['block'] = '|'.join(map(re.escape, blocks))
    for role, pattern in (roles or {}).items():
        require_pattern(pattern, f'model.backbone.roles[{role!r}]')
    return Layout(found | dict(roles or {}), grid, num_prefix_tokens)


def _blocks(path: str, module: nn.Module) -> list[str]:
    """The paths of the blocks below a module, and no block lies within another."""
    if path and BLOCK_CLASS.fullmatch(type(module).__name__) and _weights(module):
        return [path]
    below: dict[str, list[str]] = {}
    for name, child in module.named_children():
        if not OUTSIDE.fullmatch(name):
            below[name] = _blocks(f'{path}.{name}'.lstrip('.'), child)
    found = [block for blocks in below.values() for block in blocks]
    entries = [name for name in below if _weights(module.get_submodule(name)) > 1]
    if not isinstance(module, LISTS) or not path or 2 * len(entries) <= len(module):
        return found
    start = f'{path}.'
    held = sum(_numbers(module.get_submodule(block.removeprefix(start))) for block in found)
    if held < LEAST * sum(_numbers(module.get_submodule(name)) for name in entries):
        return [start + name for name in entries]
    if any(start + name in found for name in entries):  # their neighbours are blocks of other classes
        return [block for name in below for block in below[name] or [start + name] * (name in entries)]
    return found


def _weights(module: nn.Module) -> int:
    """The number of layers with a weight matrix in the module."""
    return sum(isinstance(inner, (*WEIGHTED, nn.MultiheadAttention)) for inner in module.modules())


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
