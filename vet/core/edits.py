"""The edits a tuner makes on a network, each of which can be undone bit for bit. Used by core.tuner alone.

A reweighted module keeps its class, its parameters and their names: only its instance's `forward` is replaced, by the
class's own forward on other tensors. So `state_dict` keys, hooks, deepcopy, pickle and torch.compile stay what they were,
and so do padding rules, weight standardisation and whatever else the class does with its weight.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from vet.core.merged import merged, merges
from vet.core.modes import instead
from vet.core.site import NORMS
from vet.errors import NoSiteError


@dataclass(eq=False)
class Thaw:
    """A parameter (or a norm's statistic) that trains: a copy stands in the network, the original is kept here."""

    module: nn.Module
    name: str
    key: str
    original: torch.Tensor
    mergeable = True

    @classmethod
    def of(cls, module: nn.Module, name: str, key: str) -> 'Thaw':
        original = getattr(module, name)
        copy = original.detach().clone()
        setattr(module, name, nn.Parameter(copy) if isinstance(original, nn.Parameter) else copy)
        return cls(module, name, key, original)

    @property
    def value(self) -> torch.Tensor:
        return getattr(self.module, self.name)

    def undo(self) -> None:
        self.original.data = self.original.data.to(self.value.device)
        setattr(self.module, self.name, self.original)


@dataclass(eq=False)
class Reweight:
    """`delta(weight, bias) -> (weight, bias)` of one module that has them; several at one module act in order."""

    host: nn.Module
    weight_name: str
    bias_name: str
    delta: Any                      # nn.Module; with `splits(host)` and `split(host, x, y)` where it need not form the weight,
    #                                 and with `adds_product` and `factors()` where that may be B (A x), as of a LowRankUpdate
    mergeable = True

    def apply(self) -> None:
        if '_reweights' not in self.host.__dict__:
            object.__setattr__(self.host, '_reweights', [])
            object.__setattr__(self.host, 'forward', partial(_reweighted, self.host))
        edits = reweights_of(self.host)
        edits.append(self)
        if not all_split(self.host) and any(getattr(edit.delta, 'dropout', 0) for edit in edits):
            edits.remove(self)
            raise NoSiteError(f'{type(self.delta).__name__} needs the whole weight of {self.weight_name!r} in '
                              f'{type(self.host).__name__}, where another update drops out its input: set that dropout to 0.')

    def undo(self) -> None:
        edits = reweights_of(self.host)
        if self in edits:
            edits.remove(self)
        if not edits:
            del self.host.__dict__['_reweights'], self.host.__dict__['forward']


@dataclass(eq=False)
class Hook:
    """`delta(x)` before a module, or `delta(x, y)` after it."""

    module: nn.Module
    delta: nn.Module
    handle: RemovableHandle
    is_before: bool
    mergeable = False

    @classmethod
    def before(cls, module: nn.Module, delta: nn.Module) -> 'Hook':
        return cls(module, delta, module.register_forward_pre_hook(partial(_edit_input, delta)), True)

    @classmethod
    def after(cls, module: nn.Module, delta: nn.Module) -> 'Hook':
        return cls(module, delta, module.register_forward_hook(partial(_edit_output, delta)), False)

    def undo(self) -> None:
        self.handle.remove()


def reweights_of(host: nn.Module) -> list[Reweight]:
    """The reweights of a reweighted module, in the order they act."""
    return host.__dict__['_reweights']


def new_tensors(host: nn.Module) -> dict[str, torch.Tensor | None]:
    """The tensors of `host` that its reweights change, by parameter path, as they make them."""
    tensors: dict[str, torch.Tensor | None] = {}
    for edit in reweights_of(host):
        weight, bias = (tensors[name] if name in tensors else parameter_or_none(host, name)
                        for name in (edit.weight_name, edit.bias_name))
        tensors[edit.weight_name], tensors[edit.bias_name] = edit.delta(weight, bias)
    return tensors


def parameter_or_none(module: nn.Module, path: str) -> torch.Tensor | None:
    """The parameter at a dotted path; None where the module has none, such as the bias of a bias-free convolution."""
    owner, _, name = path.rpartition('.')
    return module.get_submodule(owner)._parameters.get(name)


def _reweighted(host: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward of a reweighted module: where all deltas can, W x and what each makes of it, as W x + B(A x); else the class's
    on new tensors."""
    if len(args) == 1 and all_split(host):
        deltas = [edit.delta for edit in reweights_of(host)]
        if merges(host, deltas, args[0]):
            return merged(host, deltas, args[0])
        plain = host.__dict__.get('_plain')
        y = plain(*args) if plain else type(host).forward(host, *args)
        for delta in deltas:
            y = delta.split(host, args[0], y)
        return y
    return type(host).forward(_with_tensors(host, new_tensors(host)), *args, **kwargs)


@contextmanager
def beneath(module: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Within, `forward` computes what the module's class does: reweights that split their product add to it."""
    if '_reweights' not in module.__dict__:
        with instead(module, forward):
            yield
        return
    object.__setattr__(module, '_plain', forward)
    try:
        yield
    finally:
        del module.__dict__['_plain']


def all_split(host: nn.Module) -> bool:
    """Whether every reweight of the module can add to its output in place of forming its weight."""
    return all(hasattr(edit.delta, 'split') and edit.delta.splits(host) for edit in reweights_of(host))


def _with_tensors(module: nn.Module, tensors: Mapping[str, torch.Tensor | None]) -> nn.Module:
    """A shadow of `module` that reads `tensors` for its parameters. Nothing of `module` changes, so threads may share it."""
    shadow: Any = object.__new__(type(module))
    shadow.__dict__ = {**module.__dict__, '_parameters': dict(module._parameters), '_modules': dict(module._modules)}
    below: dict[str, dict[str, torch.Tensor | None]] = {}
    for path, tensor in tensors.items():
        child, _, rest = path.partition('.')
        if rest:
            below.setdefault(child, {})[rest] = tensor
        else:
            shadow._parameters[child] = tensor
    for child, inner in below.items():
        shadow._modules[child] = _with_tensors(module.get_submodule(child), inner)
    return shadow


def _edit_input(delta: nn.Module, module: nn.Module, args: tuple) -> tuple:
    return delta(args[0]), *args[1:]


def _edit_output(delta: nn.Module, module: nn.Module, args: tuple, out: Any) -> Any:
    if isinstance(out, tuple):          # nn.MultiheadAttention gives (output, weights): as in the dry run, the first counts
        return delta(args[0], out[0]), *out[1:]
    return delta(args[0], out)


def statistics(module: nn.Module) -> list[str]:
    """The names of a norm's running statistics, which train with its scale."""
    return [name for name, buffer in module._buffers.items() if buffer is not None] if isinstance(module, NORMS) else []
