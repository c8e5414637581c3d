"""Thaw and FlowEdit: the edits of a tuner beside Reweight.

Each can be undone, bit for bit. Used by core.tuner.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from vet.core.norms import has_statistics, is_norm
from vet.errors import UserError

MERGED = '_is_merged_by_vet'  # in the __dict__ of a parameter that a merge wrote


@dataclass(eq=False)
class Thaw:
    """A parameter (or a norm's statistic) that trains.

    A copy stands in the network. This edit keeps the original.
    """

    module: nn.Module
    name: str
    key: str
    original: torch.Tensor
    tied: Sequence[tuple[nn.Module, str]] = ()  # the other places of the same parameter
    resting: torch.Tensor | None = None  # the value, while the edit rests
    before_merge: torch.Tensor | None = None  # the value, while a merged tensor stands in its place
    mergeable = True

    @classmethod
    def of(cls, module: nn.Module, name: str, key: str, tied: Sequence[tuple[nn.Module, str]] = ()) -> 'Thaw':
        original = getattr(module, name)
        copy = original.detach().clone()
        edit = cls(module, name, key, original, tied)
        edit._put(nn.Parameter(copy) if isinstance(original, nn.Parameter) else copy)
        return edit

    def _put(self, tensor: torch.Tensor) -> None:
        for module, name in ((self.module, self.name), *self.tied):
            setattr(module, name, tensor)

    @property
    def value(self) -> torch.Tensor:
        for aside in (self.resting, self.before_merge):
            if aside is not None:
                return aside
        return getattr(self.module, self.name)

    def rest(self) -> None:
        """Undoes the edit, and keeps the value for `resume`."""
        value = self.value
        self.undo()
        self.resting = value

    def refuse_merged(self) -> None:
        """UserError if `resume` would write over merged weights, or over weights that were merged before."""
        now = getattr(self.module, self.name)
        if now is not self.original and (MERGED in vars(now) or MERGED in vars(self.original)):
            raise UserError(
                f'{self.name!r} of {type(self.module).__name__} was merged or unmerged while a tuner that '
                'trains it rested. The tuner would undo that. Call unmerge() of the model that is merged, '
                'or detach the tuner.'
            )

    def resume(self) -> None:
        """Puts the kept value into the network again, on the device and in the type that the network
        has now.
        """
        assert self.resting is not None
        self.original = getattr(self.module, self.name)
        value = self.resting
        value.data = value.data.to(self.original)
        self.resting = None
        self._put(value)

    def undo(self) -> None:
        if self.resting is not None:
            self.resting = None
            return
        self.original.data = self.original.data.to(self.value)
        self._put(self.original)


@dataclass(eq=False)
class FlowEdit:
    """`delta(x)` before a module, or `delta(x, y)` after it.

    argument: the name of the argument x of `forward`; '' is the first.
    method: the method whose result is edited: `delta(module.method())`; '' for the module's input or output.
    """

    module: nn.Module
    delta: nn.Module
    handle: 'RemovableHandle | _OfMethod'
    is_before: bool
    # the place of the edited tensor, if the module gives a tuple, list or dict
    place: int | str | None = None
    argument: str = ''
    method: str = ''
    mergeable = False

    @classmethod
    def before(cls, module: nn.Module, delta: nn.Module, argument: str = '') -> 'FlowEdit':
        if argument:
            names = [*inspect.signature(type(module).forward).parameters, argument]
            position = names.index(argument) - 1
            edit = partial(_edit_argument, delta, argument, position)
            handle = module.register_forward_pre_hook(edit, with_kwargs=True)
        else:
            handle = module.register_forward_pre_hook(partial(_edit_input, delta))
        return cls(module, delta, handle, True, argument=argument)

    @classmethod
    def after(
        cls, module: nn.Module, delta: nn.Module, place: int | str | None = None, argument: str = ''
    ) -> 'FlowEdit':
        if argument:
            edit = partial(_edit_output_of, delta, place, argument)
            handle = module.register_forward_hook(edit, with_kwargs=True)
        else:
            handle = module.register_forward_hook(partial(_edit_output, delta, place))
        return cls(module, delta, handle, False, place, argument)

    @classmethod
    def result(cls, module: nn.Module, delta: nn.Module, method: str) -> 'FlowEdit':
        if method == 'forward':
            handle: Any = module.register_forward_hook(partial(_edit_result, delta))
        else:
            handle = _OfMethod(module, method, delta)
        return cls(module, delta, handle, False, method=method)

    def undo(self) -> None:
        self.handle.remove()

    def rest(self) -> None:
        """Undoes the edit. `resume` makes it again."""
        self.handle.remove()

    def resume(self) -> None:
        """Makes the edit again."""
        if self.method:
            again = FlowEdit.result(self.module, self.delta, self.method)
        elif self.is_before:
            again = FlowEdit.before(self.module, self.delta, self.argument)
        else:
            again = FlowEdit.after(self.module, self.delta, self.place, self.argument)
        self.handle = again.handle


class _OfMethod:
    """`delta(module.method())` in the place of `module.method()`, until `remove`.

    Several deltas of one method act in order. After the last `remove`, the instance has again the method that
    it had before: its own method, or the method of its class. If other code has put another method in the
    place since, that method stays.
    """

    def __init__(self, module: nn.Module, method: str, delta: nn.Module):
        self.module = module
        self.method = method
        self.delta = delta
        before = vars(module).get(method)
        if not isinstance(before, partial) or before.func is not _edited:
            object.__setattr__(module, method, partial(_edited, module, method, before, []))
        self.edited: partial = vars(module)[method]
        self.deltas.append(delta)

    @property
    def deltas(self) -> list[nn.Module]:
        """All deltas of the method."""
        return self.edited.args[-1]

    def remove(self) -> None:
        """Does nothing if the delta is removed already."""
        if self.delta in self.deltas:
            self.deltas.remove(self.delta)
        if self.deltas or vars(self.module).get(self.method) is not self.edited:
            return
        before = self.edited.args[-2]
        del vars(self.module)[self.method]
        if before is not None:
            object.__setattr__(self.module, self.method, before)


def _edited(
    module: nn.Module, method: str, before: Callable[[], object] | None, deltas: list[nn.Module]
) -> object:
    out = getattr(type(module), method)(module) if before is None else before()
    for delta in deltas:
        out = delta(out)
    return out


def _edit_result(delta: nn.Module, module: nn.Module, args: tuple, out: Any) -> object:
    return delta(out)


def _edit_input(delta: nn.Module, module: nn.Module, args: tuple) -> tuple:
    return delta(args[0]), *args[1:]


def _edit_argument(
    delta: nn.Module, name: str, position: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]] | None:
    if kwargs.get(name) is not None:
        return args, {**kwargs, name: delta(kwargs[name])}
    if position < len(args) and args[position] is not None:
        return (*args[:position], delta(args[position]), *args[position + 1 :]), kwargs
    return None


def _edit_output_of(
    delta: nn.Module, place: Any, name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any
) -> object:
    return _edit_output(delta, place, module, args or (kwargs[name],), out)


def _edit_output(delta: nn.Module, place: Any, module: nn.Module, args: tuple, out: Any) -> object:
    if isinstance(out, torch.Tensor):
        return delta(args[0], out)
    edited = delta(args[0], out[place])
    if isinstance(out, tuple):
        values = [edited if i == place else value for i, value in enumerate(out)]
        return type(out)(*values) if hasattr(out, '_fields') else tuple(values)
    changed = copy.copy(out)
    changed[place] = edited
    return changed


def places_of(network: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """{id of a parameter: the modules that hold the parameter, each with the name there}."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(id(parameter), []).append((module, name))
    return places


def statistics(module: nn.Module) -> list[str]:
    """The names of a norm's running statistics, which train with its scale."""
    is_kept = is_norm(module) or has_statistics(module)
    return [name for name, _ in module.named_buffers(recurse=False)] if is_kept else []
