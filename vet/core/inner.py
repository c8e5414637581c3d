"""The attentions and the FFNs within a network's blocks: 'attn', 'mlp' and their parts.

The dry run finds most of them (see core.flow). Where the dry run finds nothing, names of modules help. This
file has all these names.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from torch import nn

from vet.core.flow import WEIGHTED, Layers, around


class Called(Protocol):
    """The facts about a module that the dry run saw."""

    @property
    def order(self) -> int: ...

    @property
    def layers(self) -> Layers: ...


# The name that its owner gives an FFN, or its class. A module that mixes tokens or scales channels is no FFN.
MLP_NAME = re.compile(r'mlp(_in|_channels|_layer|\d)?|ffn\d?|feed_forward|CNBlock\.block')
MLP_CLASS = re.compile(r'(\w*(Mlp|MLP|Ffn|FFN)|SwiGLU\w*|FeedForward\w*)(?<!HeadMlp)')
NO_MLP = re.compile(r'mlp_tokens|cpb_mlp|mlp_add|mlp_scale')
# Attention without a product of two activations: its layers of queries, keys and values, and its last layer
NO_ATTENTION = ('HSMSSD',)  # EfficientViM's state spaces multiply too
PRODUCTLESS = {
    r'\w*LinearSelfAttention': ('qkv_proj', 'out_proj'),
    r'\w*EfficientAdditiveAttention': ('to_query|to_key', 'final'),
}


def find_inner(network: nn.Module, calls: Mapping[str, Called], blocks: list[str]) -> dict[str, list[str]]:
    """{role: the paths of the modules and packed projections that have the role}.

    Attention behind the last block pools. Its roles are 'pool', 'pool.qkv' and 'pool.proj', so that a tuner
    acts there only if its `at` names these roles.
    """
    found: dict[str, list[str]] = {}
    end = max((calls[block].order for block in blocks), default=None)
    known = dict(attentions(network, calls))
    for path, (projections, results) in known.items():
        inside = end is None or calls[path].order <= end
        role = 'attn' if inside else 'pool'
        if path and path not in blocks:
            found.setdefault(role, []).append(path)
        found.setdefault(f'{role}.qkv', []).extend(projections)
        found.setdefault(f'{role}.proj', []).extend(results)
    within = [path for path in known if path not in blocks]
    for path in _mlps(network, calls, end, within):
        found.setdefault('mlp', []).append(path)
        found.setdefault('mlp.fc1', []).extend(calls[path].layers.first)
        found.setdefault('mlp.fc2', []).extend(calls[path].layers.last)
    taken = {name for names in found.values() for name in names}
    for block in blocks:
        for widening, narrowing in _pairs(network, calls, block, taken):
            found.setdefault('mlp.fc1', []).extend(widening)
            found.setdefault('mlp.fc2', []).append(narrowing)
    return found


def _pairs(
    network: nn.Module, calls: Mapping[str, Called], block: str, taken: set[str]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """FFNs that no module holds: the first layers and the last layer, which lie apart in the block."""
    for path, call in calls.items():
        first = call.layers.before
        if (
            not first
            or not path.startswith(f'{block}.')
            or not taken.isdisjoint((path, *around(path), *first))
        ):
            continue
        layers = [network.get_submodule(name) for name in (*first, path)]
        together = set(around(path)).intersection(*map(around, first))
        if all(isinstance(layer, nn.Linear) for layer in layers) and max(together, key=len) == block:
            shapes = [tuple(layer.weight.shape) for layer in layers if isinstance(layer, nn.Linear)]
            width, hidden = shapes.pop()
            if hidden > width and set(shapes) == {(hidden, width)}:
                yield first, path


def attentions(
    network: nn.Module, calls: Mapping[str, Called]
) -> Iterator[tuple[str, tuple[tuple[str, ...], tuple[str, ...]]]]:
    """The path of each attention, with its projections and with the layers that read its result."""
    for path, module in network.named_modules():
        if path not in calls:
            continue
        layers = calls[path].layers
        kind = type(module).__name__
        if layers.factors and kind not in NO_ATTENTION:
            whole = layers.whole if layers.whole in calls else ''
            yield whole or path, (layers.factors, layers.results)
            continue
        for known, (projections, last) in PRODUCTLESS.items():
            if re.fullmatch(known, kind):
                yield path, (_layers_below(path, module, projections), _layers_below(path, module, last))


def _layers_below(path: str, module: nn.Module, pattern: str) -> tuple[str, ...]:
    """The layers that the pattern names, or that lie in the module that the pattern names."""
    known = re.compile(rf'({pattern})(\..*)?')
    below = ((name, inner) for name, inner in module.named_modules() if known.fullmatch(name))
    return tuple(f'{path}.{name}' for name, inner in below if isinstance(inner, WEIGHTED))


def _mlps(
    network: nn.Module, calls: Mapping[str, Called], end: int | None, attentions: list[str]
) -> Iterable[str]:
    """The innermost modules that hold all layers of an FFN, outside attentions."""
    chosen: dict[tuple, str] = {}
    for path, _ in network.named_modules():
        call = calls.get(path)
        owners = list(around(path))
        if (
            not call
            or not set(call.layers.first) - set(call.layers.last)
            or not _is_mlp(network, path, owners)
        ):
            continue
        layers = (call.layers.first, call.layers.last)
        known = {*chosen.values(), *attentions}
        if (end is None or call.order <= end) and (layers in chosen or known.isdisjoint(owners)):
            chosen[layers] = path
    return chosen.values()


def _is_mlp(network: nn.Module, path: str, owners: list[str]) -> bool:
    leaf = path.rpartition('.')[2]
    module = network.get_submodule(path)
    if NO_MLP.fullmatch(leaf) or not owners:
        return False
    owner = type(network.get_submodule(owners[0])).__name__
    named = MLP_NAME.fullmatch(leaf) or MLP_NAME.fullmatch(f'{owner}.{leaf}')
    return bool(named or MLP_CLASS.fullmatch(type(module).__name__)) or _widens(module)


def _widens(module: nn.Module) -> bool:
    """Whether the module's only layers are two that see one position each: to a larger width, and back."""
    shapes = [layer.weight.shape for layer in module.modules() if isinstance(layer, WEIGHTED)]
    if len(shapes) != 2 or {*shapes[0][2:], *shapes[1][2:]} - {1}:
        return False
    (hidden, width), (out, read) = (shape[:2] for shape in shapes)
    return hidden == read and out == width < hidden
