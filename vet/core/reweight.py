"""The only file that writes the `forward` of a module's instance, which stands before the class's `forward`.

A call of a reweighted module goes through these layers, from the inside to the outside:
1. the class's `forward`, or a function that replaces the class's `forward` for a while
   (`class_forward_replaced`);
2. the `forward` that the instance had before vet, such as a user's function or a hook of accelerate;
3. the reweights of the tuners, in the order in which the tuners were attached;
4. another forward for the whole module, for a while (`forward_replaced`): then 1 to 3 are not called;
5. functions that other code wraps around the module later.

Other code may write the instance's `forward` too, such as accelerate when it removes a hook. If the new
function calls vet's forward, it stays around that forward (5). If not, vet's forward goes around the function
(2). A hook notices the function at the next call, see `_watch`. A graph of torch.compile has no such hook. If
other code writes a forward after the compilation, the graph computes without the reweights until the network
is called once without the graph.

A reweighted module keeps its tensors and its `state_dict` keys. core.merge writes the new tensors into the
module, and takes the reweights off. A module without reweights has its old forward.

Used by core, and by code that gives a module another forward for a while.
"""

from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from vet.core.delta import declared
from vet.core.output_first import output_first
from vet.core.products import can_fuse, one_product
from vet.core.shadow import Tensors, parameter_or_none, put_tensors, shadow
from vet.errors import NoSiteError

Forward = Callable[..., Any]


@dataclass(eq=False)
class Reweight:
    """`delta(weight, bias) -> (weight, bias)` for one module. Several reweights of one module act in order.

    The delta sees the weight with its output axis first, see `output_first`.
    The module keeps its class, its parameters and their names. So `state_dict` keys, hooks, deepcopy, pickle
    and torch.compile work as before. Padding rules, weight standardisation and other work of the class stay
    too.
    """

    host: nn.Module
    weight_name: str
    bias_name: str
    delta: nn.Module  # see vet.core.delta
    made: int = field(init=False)  # a number that grows: an older edit acts first, also after `resume`
    latest: ClassVar[int] = 0
    mergeable = True

    def __post_init__(self) -> None:
        Reweight.latest += 1
        self.made = Reweight.latest

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy or a pickle, which may come from another process. Edits that are made later act later."""
        self.__dict__.update(state)
        Reweight.latest = max(Reweight.latest, self.made)

    def apply(self) -> None:
        """Makes the edit. NoSiteError if a delta has dropout, but the module needs the whole weight."""
        state = _attached(self.host)
        insort(state.edits, self, key=attrgetter('made'))
        try:
            _refuse_dropout(state.edits, state.before)
        except NoSiteError:
            self.undo()
            raise

    def output_first(self, weight: torch.Tensor) -> torch.Tensor:
        """A tensor of the weight's shape as the delta sees the weight, or back."""
        return output_first(self.host.get_submodule(self.weight_name.rpartition('.')[0]), weight)

    def rest(self) -> None:
        """Undoes the edit. `resume` makes it again."""
        self.undo()

    def resume(self) -> None:
        """Makes the edit again."""
        self.apply()

    def undo(self) -> None:
        """Undoes the edit. Does nothing while the edit rests."""
        state: _Attached | None = self.host.__dict__.get(STATE)
        if state is None or self not in state.edits:
            return
        state.edits.remove(self)
        if not state.edits:
            _take_off(self.host, state)


@dataclass(eq=False)
class _Attached:
    """The state of a reweighted module. A copy or a pickle of the module has a copy of the state."""

    edits: list[Reweight] = field(default_factory=list)
    before: Forward | None = None  # the instance's own forward of before
    known: Forward | None = None  # an instance's forward of which `_watch` knows that it may stay
    is_reached: bool = True  # whether the instance's forward has called vet's forward, while `_watch` looks
    class_forward: Forward | None = None  # replaces the class's forward for a while
    hook: RemovableHandle | None = None  # `_watch`
    check: RemovableHandle | None = None  # `_keep_reweights`


STATE = '_reweighted'  # in the module's __dict__


def reweights_of(host: nn.Module) -> list[Reweight]:
    """The reweights of a module, in the order in which they act. A detached module has none."""
    state = host.__dict__.get(STATE)
    return state.edits if state else []


def all_split(host: nn.Module) -> bool:
    """Whether every reweight of the module can add to its output, so that no new weight is formed.

    False if the instance had its own forward before. An own forward may change W x, so it must see the
    new weight.
    """
    state: _Attached | None = host.__dict__.get(STATE)
    if state is not None and state.before is not None:
        return False
    return all(declared(edit.delta).splits(host) for edit in reweights_of(host))


def _refuse_dropout(edits: list[Reweight], before: Forward | None) -> None:
    """NoSiteError if an update drops out its input, but the module needs the whole weight.

    before: a forward that is not vet's.
    """
    if before is None and all(declared(edit.delta).splits(edit.host) for edit in edits):
        return
    for edit in edits:
        if declared(edit.delta).dropout:
            raise NoSiteError(
                f'{type(edit.delta).__name__} needs the whole weight of {edit.weight_name!r} in '
                f'{type(edit.host).__name__}, where an update drops out its input: set that dropout to 0.'
            )


def new_tensors(host: nn.Module, edits: Iterable[Reweight]) -> Tensors:
    """The new tensors of `host`, by parameter path: the tensors that `edits`, its reweights, change."""
    tensors: Tensors = {}
    for edit in edits:
        weight, bias = (
            tensors[name] if name in tensors else parameter_or_none(host, name)
            for name in (edit.weight_name, edit.bias_name)
        )
        assert weight is not None
        new, tensors[edit.bias_name] = edit.delta(edit.output_first(weight), bias)
        tensors[edit.weight_name] = edit.output_first(new)
    return tensors


def take_reweights(host: nn.Module, count: int) -> None:
    """Takes the first `count` reweights off, whose tensors the module is about to hold."""
    state: _Attached = host.__dict__[STATE]
    state.edits = state.edits[count:]
    if not state.edits:
        _take_off(host, state)


def give_reweights(host: nn.Module, edits: Sequence[Reweight]) -> None:
    """Puts reweights on again that act before those of the module."""
    state = _attached(host)
    state.edits = [*edits, *state.edits]


# Attached and detached --------------------------------------------------------------------------------------


def _attached(host: nn.Module) -> _Attached:
    """The state of a module that gets an edit."""
    if STATE not in host.__dict__:
        _put_on(host, _Attached())
    state: _Attached = host.__dict__[STATE]
    if state.hook is None:
        state.hook = host.register_forward_pre_hook(_watch)
    return state


def _put_on(host: nn.Module, state: _Attached) -> None:
    """Puts vet's forward around the forward of the instance."""
    state.before = _instance_forward(host)
    state.known = partial(_reweighted, host, state.before)
    object.__setattr__(host, STATE, state)
    object.__setattr__(host, 'forward', state.known)


def _instance_forward(host: nn.Module) -> Forward | None:
    """The forward of the instance. None if that is the class's forward, which accelerate leaves there."""
    forward = host.__dict__.get('forward')
    if (
        isinstance(forward, MethodType)
        and forward.__func__ is type(host).forward
        and forward.__self__ is host
    ):
        return None
    return forward


def _take_off(host: nn.Module, state: _Attached) -> None:
    """Gives the module its forward of before.

    If other code has written a forward since, that forward stays. It may call the forward of before through
    `_reweighted`.
    """
    for handle in (state.hook, state.check):
        if handle is not None:
            handle.remove()
    state.hook = None
    state.check = None
    forward = _instance_forward(host)
    if forward is not None and getattr(forward, 'func', None) is not _reweighted:
        return
    del host.__dict__[STATE]
    host.__dict__.pop('forward', None)
    if forward is not None and state.before is not None:
        object.__setattr__(host, 'forward', state.before)


def _watch(host: nn.Module, args: tuple) -> None:
    """A hook before each call. If the instance has another forward than vet knows, this call is checked.

    The hook has a second effect. nn.TransformerEncoderLayer in eval mode computes all its layers in one
    function, which reads their weights and does not call them. If one of them has a hook, they are called.
    """
    if torch.compiler.is_compiling():  # a graph holds no checks
        return
    state: _Attached | None = host.__dict__.get(STATE)
    if state is None or host.__dict__.get('forward') is state.known:
        return
    state.is_reached = False
    if state.check is None:
        state.check = host.register_forward_hook(_keep_reweights, prepend=True, with_kwargs=True)


def _keep_reweights(host: nn.Module, args: tuple, kwargs: dict[str, Any], output: object) -> object:
    """A hook after a call whose forward was written by other code.

    If the forward has not called vet's forward, the reweights are lost. Then vet's forward goes around the
    other forward, and computes the output again.
    """
    state: _Attached = host.__dict__[STATE]
    assert state.check is not None
    state.check.remove()
    state.check = None
    if state.is_reached:
        state.known = host.__dict__.get('forward')
        return output
    state.is_reached = True
    _refuse_dropout(state.edits, _instance_forward(host))
    _put_on(host, state)
    return host.forward(*args, **kwargs)


def _reweighted(host: nn.Module, before: Forward | None, *args: object, **kwargs: object) -> object:
    """The forward of a reweighted module.

    If all deltas can split: W x and the additions of the deltas, as W x + B(A x). If not: the class's forward
    with the new tensors.
    before: the forward around which this forward was put. If vet's forward went around other code's forward
    later, that code may still call this forward. Then this forward passes on.
    """
    state: _Attached | None = host.__dict__.get(STATE)
    if state is None or before is not state.before or (before is not None and not state.edits):
        return type(host).forward(host, *args, **kwargs) if before is None else before(*args, **kwargs)
    if not state.is_reached:
        state.is_reached = True
    deltas = [declared(edit.delta) for edit in state.edits]
    splits = before is None and all([delta.splits(host) for delta in deltas])
    if not splits or len(args) != 1 or kwargs:
        return _with_tensors(host, state, new_tensors(host, state.edits), *args, **kwargs)
    x = args[0]
    assert isinstance(x, torch.Tensor)
    if len(deltas) == 1 and deltas[0].turns_input:
        x = deltas[0].turned(host, x)
        deltas = []
    if state.class_forward is None or can_fuse(host, deltas, x):  # another forward is for autocast alone
        if deltas and (whole := one_product(host, deltas, x)) is not None:
            return whole
    y = type(host).forward(host, x) if state.class_forward is None else state.class_forward(x)
    for delta in deltas:
        y = delta.split(host, x, y)
    return y


def _with_tensors(
    host: nn.Module, state: _Attached, tensors: Tensors, *args: object, **kwargs: object
) -> object:
    """The old forward with new tensors."""
    if state.before is None:
        return type(host).forward(shadow(host, tensors), *args, **kwargs)
    # a forward that is not vet's reads the tensors from the module itself
    old = {path: parameter_or_none(host, path) for path in tensors}
    try:
        put_tensors(host, tensors)
        return state.before(*args, **kwargs)
    finally:
        put_tensors(host, old)


# Another forward for a while --------------------------------------------------------------------------------


@contextmanager
def forward_replaced(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Within this context, the module computes `forward` and nothing else.

    Afterwards, it computes as before.
    """
    state: _Attached | None = module.__dict__.get(STATE)
    known = state.known if state else None
    with forward_kept(module):
        object.__setattr__(module, 'forward', forward)
        if state:
            state.known = forward
        try:
            yield
        finally:
            if state:
                state.known = known


@contextmanager
def forward_kept(module: nn.Module) -> Iterator[None]:
    """Within this context, the instance's `forward` may change.

    Afterwards, the instance has its `forward` of before.
    """
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
    """Within this context, `forward` replaces the class's forward.

    Reweights that split still add to the output.
    """
    state: _Attached | None = module.__dict__.get(STATE)
    if state is None:
        with forward_replaced(module, forward):
            yield
        return
    before = state.class_forward
    state.class_forward = forward
    try:
        yield
    finally:
        state.class_forward = before
