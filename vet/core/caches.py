"""Tensors that modules compute in a forward and keep, such as LeViT's attention biases in eval mode.

A module computes such a tensor from parameters. When the parameters change, the kept tensor is wrong.
`caches_recorded` watches one forward: each module that the forward changes notes its earlier state.
`clear_caches` restores that state, so that the module computes the tensor again.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vet.torch_private import buffers_of, has_compiled, hooks_after, hooks_before

BEFORE = '_before_forward'  # in a module's __dict__: {name of an attribute or a buffer: its earlier value}
FILLED = '_filled_in_forward'  # in a module's __dict__: the names of buffers into which the forward writes
ABSENT = '(absent)'
OWN = {*vars(nn.Module()), BEFORE, FILLED, 'forward', '_reweighted', '_route'}


@contextmanager
def caches_recorded(network: nn.Module) -> Iterator[None]:
    """Run a forward within this context.

    Afterwards, each module has its earlier state, and notes what the forward changed.
    """
    modules = list(network.modules())
    numbers = [
        (module, name, buffer, buffer.clone()) for module in modules for name, buffer in _own_buffers(module)
    ]
    with _changes_noted(modules) as changes:
        yield
    for module, changed in changes:
        kept = {name: was for name, was in changed.items() if not _is_state(module, name, was)}
        if kept:
            module.__dict__[BEFORE] = kept | module.__dict__.get(BEFORE, {})
    for module, name, buffer, was in numbers:
        if not buffer.is_meta and not torch.equal(buffer, was):
            module.__dict__[FILLED] = {name} | module.__dict__.get(FILLED, set())
            buffer.copy_(was)


@contextmanager
def caches_discarded(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run a forward within this context.

    Afterwards, each module has its earlier state, with the numbers in its buffers.
    """
    modules = list(modules)
    numbers = [(buffer, buffer.clone()) for module in modules for _, buffer in _own_buffers(module)]
    with _changes_noted(modules):
        yield
    for buffer, was in numbers:
        if not buffer.is_meta and not torch.equal(buffer, was):
            buffer.data.copy_(was)


@contextmanager
def _changes_noted(modules: Iterable[nn.Module]) -> Iterator[list[tuple[nn.Module, dict[str, object]]]]:
    """Restores what the forward changed.

    When the context has ended, the list has the earlier values by module. A forward of transformers installs
    hooks once, and notes that in a flag. The hooks stay, so such flags stay too.
    """
    before = [(module, _state(module)) for module in dict.fromkeys(modules)]
    hooks = _count_hooks(module for module, _ in before)
    changes: list[tuple[nn.Module, dict[str, object]]] = []
    try:
        yield changes
    finally:
        flags = (bool,) if hooks != _count_hooks(module for module, _ in before) else ()
        for module, old in before:
            new = {name: value for name, value in _state(module).items() if not isinstance(value, flags)}
            old = {name: value for name, value in old.items() if not isinstance(value, flags)}
            names = [name for name in old | new if not _same(old.get(name, ABSENT), new.get(name, ABSENT))]
            changed = {name: old.get(name, ABSENT) for name in names}
            changes.append((module, changed))
            for name, was in changed.items():
                _put_back(module, name, was)


def _count_hooks(modules: Iterable[nn.Module]) -> int:
    return sum(len(hooks_before(module)) + len(hooks_after(module)) for module in modules)


def clear_caches(modules: Iterable[nn.Module]) -> None:
    """Makes the modules forget the tensors that they computed from their parameters. Takes little time."""
    for module in modules:
        for name, was in module.__dict__.get(BEFORE, {}).items():
            _put_back(module, name, was)


def written_buffers(network: nn.Module) -> Iterator[torch.Tensor]:
    """The buffers into which a forward of the network writes. Two networks must not share them."""
    for module in network.modules():
        names = module.__dict__.get(FILLED, ())
        yield from (buffer for name, buffer in _own_buffers(module) if name in names)


def _own_buffers(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The names and buffers of the module itself."""
    return module.named_buffers(recurse=False)


def _is_state(module: nn.Module, name: str, was: object) -> bool:
    """Whether the name is a buffer of the state_dict, such as a counter, which is no cache."""
    return isinstance(was, torch.Tensor) and name in buffers_of(module) and name in module.state_dict()


def _put_back(module: nn.Module, name: str, was: object) -> None:
    place: Any = buffers_of(module) if name in buffers_of(module) else module.__dict__
    if isinstance(was, str) and was == ABSENT:
        place.pop(name, None)
    else:
        place[name] = was.refilled() if isinstance(was, _Held) else was


def _state(module: nn.Module) -> dict[str, object]:
    """The attributes of a module that torch does not own, and the module's buffers."""
    attributes = {name: _held(value) for name, value in vars(module).items() if name not in OWN}
    return attributes | buffers_of(module)


@dataclass(eq=False)
class _Held:
    """A dict, list or set, which several modules may share, and its earlier content."""

    container: Any
    content: Any

    def refilled(self) -> Any:
        """The container, with its earlier content again."""
        parts = [_refilled(item) for item in self.content]
        self.container.clear()
        if isinstance(self.container, list):
            self.container.extend(parts)
        else:
            self.container.update(parts)
        return self.container


def _held(value: Any) -> object:
    if type(value) is dict:
        return _Held(value, [(key, _held(inner)) for key, inner in value.items()])
    if type(value) in (list, set):
        return _Held(value, [_held(inner) for inner in value])
    return value


def _refilled(item: object) -> object:
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], _Held):  # of a dict
        return item[0], item[1].refilled()
    return item.refilled() if isinstance(item, _Held) else item


def _same(old: object, new: object) -> bool:
    """Whether the same objects stand in the same places."""
    if isinstance(old, _Held) and isinstance(new, _Held):
        return old.container is new.container and _same(old.content, new.content)
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        return len(old) == len(new) and all(map(_same, old, new))
    return old is new or (isinstance(old, (str, int, float)) and type(old) is type(new) and old == new)


def forget_compiled_graphs() -> None:
    """Forgets graphs of torch.compile. A graph from before an edit would run without the edit, in silence."""
    if has_compiled():
        torch.compiler.reset()
