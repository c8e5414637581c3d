"""The only owner of a module's own `forward`: of the instance's `forward`, which stands before the class's.

From the inside to the outside, a call of a reweighted module goes through:
1. the class's `forward`, or another one that stands in for the class's for a while
(`class_forward_replaced`); 2. the instance's own `forward` that stood there before vet came, such as one of a
user or a hook of accelerate: vet keeps it,
   calls it, and gives it back;
3. the reweights of the tuners, in the order in which they were attached;
4. another forward for the whole module, for a while (`forward_replaced`): nothing of 1 to 3 is called;
5. whatever others wrap around the module afterwards.

A module with reweights is attached. Its tensors and its `state_dict` keys are the old ones. `merge_reweights`
writes the new tensors into the module, which then has its old forward again, and `unmerge_reweights` takes
the tensors back, bit for bit. A
module without reweights is detached: what stood there before stands there again.

Used by core, and by whatever gives a module another forward for a while.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from vet.core.delta import declared
from vet.core.output_first import output_first
from vet.core.products import can_merge, merged_product
from vet.errors import NoSiteError
from vet.torch_private import children_of, parameters_of, twin

Forward = Callable[..., Any]
Tensors = dict[str, torch.Tensor | None]


@dataclass(eq=False)
class Reweight:
    """`delta(weight, bias) -> (weight, bias)` of one module that has them; several at one module act in
    order.

    The delta sees the weight with its output axis first, see `output_first`.
    The module keeps its class, its parameters and their names. So `state_dict` keys, hooks, deepcopy, pickle
    and torch.compile stay what they were, and so do padding rules, weight standardisation and whatever else
    the class does with its weight.
    """

    host: nn.Module
    weight_name: str
    bias_name: str
    delta: Any  # nn.Module, see vet.core.delta
    mergeable = True

    def apply(self) -> None:
        """Puts the edit on. NoSiteError where a delta drops out its input, and the whole weight is needed."""
        state = _attached(self.host)
        state.edits.append(self)
        if not all_split(self.host) and any(declared(edit.delta).dropout for edit in state.edits):
            self.undo()
            raise NoSiteError(
                f'{type(self.delta).__name__} needs the whole weight of {self.weight_name!r} in '
                f'{type(self.host).__name__}, where an update drops out its input: set that dropout to 0.'
            )

    def output_first(self, weight: torch.Tensor) -> torch.Tensor:
        """A tensor of the weight's shape as the delta sees the weight, or back."""
        return output_first(self.host.get_submodule(self.weight_name.rpartition('.')[0]), weight)

    def undo(self) -> None:
        """Takes the edit off."""
        state = self.host.__dict__[STATE]
        state.edits.remove(self)
        if not state.edits:
            _take_off(self.host, state)


@dataclass(eq=False)
class _Attached:
    """What stands on a reweighted module. A copy or a pickle of the module has a copy of this."""

    edits: list[Reweight] = field(default_factory=list)
    before: Forward | None = None  # the instance's forward that stood there before
    class_forward: Forward | None = None  # for a while, in place of the class's


STATE = '_reweighted'  # in the module's __dict__


def reweights_of(host: nn.Module) -> list[Reweight]:
    """The reweights of a module, in the order they act; none of a module that is detached."""
    state = host.__dict__.get(STATE)
    return state.edits if state else []


def all_split(host: nn.Module) -> bool:
    """Whether every reweight of the module can add to its output in place of forming its weight.

    Not where another forward stood there before: what that one makes of W x, it must make of the new weight
    too.
    """
    state: _Attached | None = host.__dict__.get(STATE)
    if state is not None and state.before is not None:
        return False
    return all(declared(edit.delta).splits(host) for edit in reweights_of(host))


def new_tensors(host: nn.Module) -> Tensors:
    """The tensors of `host` that its reweights change, by parameter path, as they make them."""
    tensors: Tensors = {}
    for edit in reweights_of(host):
        weight, bias = (
            tensors[name] if name in tensors else parameter_or_none(host, name)
            for name in (edit.weight_name, edit.bias_name)
        )
        assert weight is not None
        new, tensors[edit.bias_name] = edit.delta(edit.output_first(weight), bias)
        tensors[edit.weight_name] = edit.output_first(new)
    return tensors


def parameter_or_none(module: nn.Module, path: str) -> torch.Tensor | None:
    """The parameter at a dotted path; None where the module has none, such as the bias of a bias-free
    convolution.
    """
    owner, _, name = path.rpartition('.')
    return parameters_of(module.get_submodule(owner)).get(name)


# Attached and detached --------------------------------------------------------------------------------------


def _attached(host: nn.Module) -> _Attached:
    """The state of a module on which an edit is put."""
    if STATE not in host.__dict__:
        _put_on(host, _Attached(before=host.__dict__.get('forward')))
    return host.__dict__[STATE]


def _put_on(host: nn.Module, state: _Attached) -> None:
    object.__setattr__(host, STATE, state)
    object.__setattr__(host, 'forward', partial(_reweighted, host))


def _take_off(host: nn.Module, state: _Attached) -> None:
    """Gives the module back what stood there. Where somebody has wrapped the module since, his wrapper stays,
    and calls what stood there through `_reweighted`."""
    if getattr(host.__dict__.get('forward'), 'func', None) is not _reweighted:
        return
    del host.__dict__[STATE], host.__dict__['forward']
    if state.before is not None:
        object.__setattr__(host, 'forward', state.before)


def _reweighted(host: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward of a reweighted module: where all deltas can, W x and what each makes of it, as W x + B(A
    x); else the class's on new tensors."""
    state: _Attached | None = host.__dict__.get(STATE)
    if state is None:
        return type(host).forward(host, *args, **kwargs)
    if state.before is not None and not state.edits:
        return state.before(*args, **kwargs)
    if not all_split(host) or len(args) != 1 or kwargs:
        return _with_tensors(host, state, new_tensors(host), *args, **kwargs)
    deltas, (x,) = [edit.delta for edit in state.edits], args
    if deltas and can_merge(host, deltas, x):
        return merged_product(host, deltas, x)
    if state.class_forward is not None:
        y = state.class_forward(x)
    else:
        y = type(host).forward(host, x)
    for delta in deltas:
        y = delta.split(host, x, y)
    return y


def _with_tensors(host: nn.Module, state: _Attached, tensors: Tensors, *args: Any, **kwargs: Any) -> Any:
    """The old forward on new tensors."""
    if state.before is None:
        return type(host).forward(_shadow(host, tensors), *args, **kwargs)
    old = {
        path: parameter_or_none(host, path) for path in tensors
    }  # a stranger's forward reads them from the module itself
    try:
        _put_tensors(host, tensors)
        return state.before(*args, **kwargs)
    finally:
        _put_tensors(host, old)


def _shadow(module: nn.Module, tensors: Mapping[str, torch.Tensor | None]) -> nn.Module:
    """A shadow of `module` that reads `tensors` for its parameters. Nothing of `module` changes, so
    threads may share it.
    """
    shadow: Any = twin(module)
    below: dict[str, Tensors] = {}
    for path, tensor in tensors.items():
        child, _, rest = path.partition('.')
        if rest:
            below.setdefault(child, {})[rest] = tensor
        else:
            parameters_of(shadow)[child] = tensor
    for child, inner in below.items():
        children_of(shadow)[child] = _shadow(module.get_submodule(child), inner)
    return shadow


def _put_tensors(module: nn.Module, tensors: Mapping[str, Any]) -> None:
    for path, tensor in tensors.items():
        owner, _, name = path.rpartition('.')
        parameters_of(module.get_submodule(owner))[name] = tensor


# Merged -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Merged:
    """What `merge_reweights` took from a module."""

    host: nn.Module
    edits: list[Reweight]
    originals: Tensors


def merge_reweights(host: nn.Module) -> Merged:
    """Writes the new tensors of an attached module into the module, as parameters without a gradient.
    Its edits are put aside.
    """
    with torch.no_grad():
        tensors = new_tensors(host)
    state = host.__dict__[STATE]
    merged = Merged(host, state.edits, {path: parameter_or_none(host, path) for path in tensors})
    state.edits = []
    _take_off(host, state)
    _put_tensors(
        host,
        {
            path: None if tensor is None else nn.Parameter(tensor, requires_grad=False)
            for path, tensor in tensors.items()
        },
    )
    return merged


def unmerge_reweights(merged: Merged) -> None:
    """Takes `merge_reweights` back, bit for bit."""
    _put_tensors(merged.host, merged.originals)
    _attached(merged.host).edits = merged.edits


# Another forward for a while --------------------------------------------------------------------------------


@contextmanager
def forward_replaced(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Within, the module computes `forward` and nothing else; after it, what it computed before."""
    with forward_kept(module):
        object.__setattr__(module, 'forward', forward)
        yield


@contextmanager
def forward_kept(module: nn.Module) -> Iterator[None]:
    """Within, the instance's `forward` may change; after it, the one stands there that stood there before."""
    before = vars(module).get('forward')
    try:
        yield
    finally:
        vars(module).pop('forward', None)
        if before is not None:
            object.__setattr__(module, 'forward', before)


@contextmanager
def class_forward_replaced(
    module: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Within, `forward` computes what the module's class does: reweights that split their product add
    to it.
    """
    state: _Attached | None = module.__dict__.get(STATE)
    if state is None:
        with forward_replaced(module, forward):
            yield
        return
    state.class_forward = forward
    try:
        yield
    finally:
        state.class_forward = None
