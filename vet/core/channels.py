"""Finds the axis of a tensor that holds the channels, by watching one forward. Used by core.dry_run.

A layer with a weight shows where its channels are: a Linear and a layer norm read the last axis, a
convolution and a batch norm the second. Between the layers, axes of a tensor become axes of the next tensor.
`Channels` follows both. So nothing between a layer and a block's edge hides the channels: no residual sum, no
permutation, no windows, no padding. No class needs to be known by name.
"""

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from functools import cached_property

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from vet.torch_private import share_storage, unwatched

LAST = ('linear', 'layer_norm', 'rms_norm', 'lstm', 'gru')
SECOND = (
    *('conv1d', 'conv2d', 'conv3d', 'conv_transpose1d', 'conv_transpose2d', 'conv_transpose3d'),
    *('batch_norm', 'group_norm', 'instance_norm'),
)
MIXES = (
    'matmul',
    '__matmul__',
    '__rmatmul__',
    'mm',
    'bmm',
    'baddbmm',
    'einsum',
    'tensordot',
    'scaled_dot_product_attention',
)
COPIES = ('reshape', 'flatten')  # may be a view, or a view's copy


class Channels(TorchFunctionMode):
    """Within this context, follows the axes of all tensors.

    Afterwards, `axis` and `used_after` give answers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0  # functions that have run
        # tensor -> one number for each of its axes
        self._axes: MutableMapping[torch.Tensor, tuple[int, ...]] = WeakIdKeyDictionary()
        self._last_use: dict[int, int] = {}  # a tensor's first number -> the clock of its last use
        self._same: list[int] = []  # a forest: the number of an axis -> the number of its parent
        self._channels: set[int] = set()  # the numbers of axes that a layer takes for channels

    def axes(self, tensor: torch.Tensor) -> tuple[int, ...]:
        """The numbers of the tensor's axes. They stay valid after the tensor is gone."""
        if tensor not in self._axes:
            first = len(self._same)
            self._axes[tensor] = tuple(range(first, first + max(tensor.dim(), 1)))
            self._same.extend(self._axes[tensor])
        return self._axes[tensor]

    def axis(self, axes: tuple[int, ...]) -> int | None:
        """The channel axis of the tensor with these numbers, counted from the end: -1 is the last axis.

        None: no axis, or several axes, hold channels.
        """
        places = [
            place - len(axes)
            for place, number in enumerate(axes)
            if place and self._root(number) in self._channel_roots
        ]
        return places[0] if len(places) == 1 else None

    @cached_property
    def _channel_roots(self) -> set[int]:
        return {self._root(number) for number in self._channels}

    def used_after(self, axes: tuple[int, ...], clock: int) -> bool:
        """Whether a function took the tensor later than at `clock`."""
        return self._last_use.get(axes[0], -1) >= clock

    def __torch_function__(
        self, function: Callable, types: Iterable[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        out = function(*args, **(kwargs or {}))
        with unwatched():
            given, gave = list(tensors_in((args, kwargs))), list(tensors_in(out))
            # without a tensor in its answer, the function asked for a shape, a type or a device
            if gave or isinstance(out, torch.Tensor):
                self._note(getattr(function, '__name__', ''), given, gave)
        return out

    def _note(self, name: str, given: list[torch.Tensor], gave: list[torch.Tensor]) -> None:
        """The function `name` made the tensors `gave` out of the tensors `given`."""
        for tensor in given:
            self._last_use[self.axes(tensor)[0]] = self.clock
        self.clock += 1
        for made in gave:
            for tensor in given:
                if name not in MIXES:
                    self._follow(tensor, made, name)
            if given and name in LAST + SECOND:
                self._mark(given[0], name)
                self._mark(made, name)

    def _mark(self, tensor: torch.Tensor, name: str) -> None:
        place = 1 if name in SECOND else -1
        if tensor.dim() > 1:
            self._channels.add(self.axes(tensor)[place])

    def _follow(self, before: torch.Tensor, after: torch.Tensor, name: str) -> None:
        if after is before or not before.dim():
            return
        shared = range(before.dim() if before.dim() == after.dim() else 0)
        if name in COPIES:
            pairs = _kept(_places(before, _dense(before)), _places(after, _dense(after)))
        elif share_storage(before, after):
            pairs = _kept(_places(before, before.stride()), _places(after, after.stride()))
            pairs += [
                (i, i)
                for i in shared
                if before.stride(i) == after.stride(i) and min(before.shape[i], after.shape[i]) > 1
            ]
        else:
            pairs = [(i, i) for i in shared]
        one, other = self.axes(before), self.axes(after)
        for i, j in pairs:
            self._same[self._root(one[i])] = self._root(other[j])

    def _root(self, number: int) -> int:
        while self._same[number] != number:
            self._same[number] = number = self._same[self._same[number]]
        return number


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """The tensors with axes in a value and in its tuples, lists and dicts, in order."""
    if isinstance(value, torch.Tensor):
        if value.dim():
            yield value
    elif isinstance(value, (tuple, list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(inner)


def _places(tensor: torch.Tensor, strides: tuple[int, ...]) -> dict[tuple[int, int], int]:
    """(length, step in memory) -> the place of the axis, for axes longer than 1.

    A view keeps length and step.
    """
    return {(size, step): i for i, (size, step) in enumerate(zip(tensor.shape, strides)) if size > 1}


def _kept(before: dict[tuple[int, int], int], after: dict[tuple[int, int], int]) -> list[tuple[int, int]]:
    return [(before[key], place) for key, place in after.items() if key in before]


def _dense(tensor: torch.Tensor) -> tuple[int, ...]:
    """The steps of the tensor's axes in a dense copy."""
    return torch.empty(tensor.shape, device='meta').stride()
