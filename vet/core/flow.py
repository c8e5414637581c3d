"""Watches one forward, and finds which layers feed which other layers. So vet finds attentions and FFNs.

A layer is a Linear, a convolution, or the packed projection of nn.MultiheadAttention. A tensor comes from the
nearest layers before it. If a module multiplies two tensors that come from layers inside the module, these
layers make its queries, keys and values. The watching needs neither the names of layers nor numbers, so
torch's meta device is enough.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from vet.core.channels import MIXES, tensors_in
from vet.torch_private import CONVOLUTION, PACKED_ATTENTION

WEIGHTED = (nn.Linear, CONVOLUTION)
CONVOLUTIONS = ('conv1d', 'conv2d', 'conv3d')
LAYERS = ('linear', *CONVOLUTIONS, 'conv_transpose1d', 'conv_transpose2d', 'conv_transpose3d')
WHOLE = 'scaled_dot_product_attention'  # both products of an attention


@dataclass(frozen=True)
class From:
    """The origin of a tensor.

    layers: the nearest layers before the tensor.
    scores, done: the modules whose product the tensor comes from: the first product, and the last.
    """

    layers: frozenset[str] = frozenset()
    scores: frozenset[str] = frozenset()
    done: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Layers:
    """The layers that the flow finds for one module."""

    factors: tuple[str, ...] = ()  # the layers whose outputs the module multiplies with one another
    results: tuple[str, ...] = ()  # the layers that read the output of the last of these products
    first: tuple[str, ...] = ()  # the layers below the module that read no other layer below it
    last: tuple[str, ...] = ()  # the layers below the module that no other layer there reads
    before: tuple[str, ...] = ()  # of a layer: the nearest layers before it
    # the module around, if it adds only the layers that read the result, as Swinv2Attention of transformers
    whole: str = ''


class Flow(TorchFunctionMode):
    """Within this context, follows all tensors of `network`.

    The dry run reports by `enter` and `leave` which module runs.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._names = {id(weight): name for name, weight in _weights(network)}
        self._layers = set(self._names.values())
        self._owners = {path for name in self._layers for path in around(name)}
        self._running = ['']
        self._from: Any = WeakIdKeyDictionary()
        self._reads: dict[str, set[str]] = {}  # by layer, the nearest layers before it
        self._by_channel: set[str] = set()  # the layers that act on each channel alone
        self._factors: dict[str, set[str]] = {}  # by module, the layers whose outputs it multiplies
        self._within: dict[str, set[str]] = {}  # by module, the layers that read what its first product gives
        self._results: dict[str, set[str]] = {}  # by module, the layers that read what its last product gives
        self._behind: dict[
            str, set[str]
        ] = {}  # the same, but the module has returned, and the module around has not

    def enter(self, name: str) -> None:
        self._running.append(name)

    def leave(self) -> None:
        self._running.pop()

    def layers(self, modules: Iterable[str]) -> dict[str, Layers]:
        """{path of a module: its Layers}."""
        below: dict[str, list[str]] = {}
        for layer in (layer for layer in self._reads if layer not in self._by_channel):
            for path in around(layer):
                below.setdefault(path, []).append(layer)
        return {module: self._of(module, below) for module in modules}

    def _of(self, module: str, below: dict[str, list[str]]) -> Layers:
        inside, factors = below.get(module, []), self._factors.get(module, set())
        results = self._results.get(module) or self._within.get(module) or set()
        whole = ''
        behind = self._behind.get(module, set())
        parent = module.rpartition('.')[0]
        if not results and set(below.get(parent, ())) == {*inside, *behind}:
            results = behind
            whole = parent
        return Layers(
            self._in_order(factors),
            self._in_order(results - factors),
            self._first(inside),
            self._last(inside),
            self._in_order(self._reads.get(module, set())),
            whole,
        )

    def _in_order(self, layers: set[str]) -> tuple[str, ...]:
        return tuple(layer for layer in self._reads if layer in layers)

    def _first(self, layers: list[str]) -> tuple[str, ...]:
        return tuple(layer for layer in layers if self._reads[layer].isdisjoint(layers))

    def _last(self, layers: list[str]) -> tuple[str, ...]:
        read = set[str]().union(*(self._reads[layer] for layer in layers))
        return tuple(layer for layer in layers if layer not in read)

    def __torch_function__(
        self, function: Callable, types: Iterable[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        name = getattr(function, '__name__', '')
        written = [args[0]] if name == '__setitem__' else []
        if not (gave := written or list(tensors_in(out))):
            return out
        named = (*args, *kwargs.values())
        given = list(tensors_in(named[:3] if name == WHOLE else named))  # q, k and v, without the mask
        if name in LAYERS:
            come = self._layer(name, *named[:2])
        elif name in PACKED_ATTENTION:
            come = self._packed(self._running[-1])
        elif name in MIXES:
            come = self._product(name, given)
        else:
            come = self._union(given)
        if come.layers:
            for tensor in gave:
                self._from[tensor] = come
        return out

    def _union(self, tensors: Iterable[torch.Tensor]) -> From:
        """The union of the origins. If a bias of positions is added to a product, only the product counts."""
        known = {self._from[tensor] for tensor in tensors if tensor in self._from}
        known = {come for come in known if self._here(come.scores | come.done)} or known
        if len(known) == 1:
            return known.pop()
        return From(
            frozenset().union(*(come.layers for come in known)),
            frozenset().union(*(come.scores for come in known)),
            frozenset().union(*(come.done for come in known)),
        )

    def _here(self, modules: frozenset[str]) -> frozenset[str]:
        """The modules that are running."""
        return modules.intersection(self._running)

    def _layer(self, function: str, x: torch.Tensor, weight: torch.Tensor) -> From:
        """The origin of the layer's output.

        A layer that mixes heads within an attention, or acts on each channel alone, keeps the origin of its
        input.
        """
        before = self._union([x])
        name = self._names.get(id(weight), self._running[-1])  # a weight that was standardised has another id
        if name not in self._layers:
            return before
        scores, done = self._here(before.scores), self._here(before.done)
        for module in before.done - done:
            if module.rpartition('.')[0] in self._running:
                self._behind.setdefault(module, set()).add(name)
        self._reads.setdefault(name, set()).update(() if done else before.layers)
        for noted, modules in ((self._within, scores), (self._results, done)):
            for module in modules:
                noted.setdefault(module, set()).add(name)
        by_channel = function in CONVOLUTIONS and (
            weight.shape[1] == 1 or weight.shape[1] < x.shape[1 - weight.dim()]
        )
        if by_channel:
            self._by_channel.add(name)
        return before if scores or by_channel and before.layers else From(frozenset([name]))

    def _packed(self, module: str) -> From:
        """nn.MultiheadAttention computes everything in one function."""
        packed = f'{module}.in_proj'
        last = f'{module}.out_proj'
        self._reads.setdefault(packed, set())
        self._reads.setdefault(last, set()).add(packed)
        self._factors.setdefault(module, set()).add(packed)
        self._results.setdefault(module, set()).add(last)
        return From(frozenset([last]))

    def _product(self, name: str, tensors: list[torch.Tensor]) -> From:
        come = [self._from[tensor] for tensor in tensors if tensor in self._from]
        module = next((path for path in reversed(self._running) if path in self._owners), '')
        inside = [_below(module, origin.layers) for origin in come]
        if sum(map(bool, inside)) < 2:
            return self._union(tensors)
        self._factors.setdefault(module, set()).update(*inside)
        layers = frozenset().union(*(origin.layers for origin in come))
        multiplied = frozenset([module])
        if name == WHOLE or any(module in origin.scores for origin in come):
            return From(layers, done=multiplied)
        return From(layers, scores=multiplied)


def _below(module: str, layers: Iterable[str]) -> set[str]:
    return {layer for layer in layers if module in around(layer)}


def around(path: str) -> Iterator[str]:
    """The paths of all modules around the module at `path`, the nearest first. '' is the network."""
    while path:
        path = path.rpartition('.')[0]
        yield path


def _weights(network: nn.Module) -> Iterator[tuple[str, object]]:
    for name, module in network.named_modules():
        if isinstance(module, WEIGHTED):
            yield name, module.weight
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield f'{name}.in_proj', module.in_proj_weight
