"""The dry run: one forward of a network, which shows what each module takes and gives.

site_map.py places sites by these facts. Backbones and tuned networks run `dry_run` when they are made.
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from vet.core.channels import Channels, tensors_in
from vet.core.flow import Flow, Layers
from vet.core.modes import in_eval, uncompiled
from vet.torch_private import unwatched


@dataclass(frozen=True)
class Call:
    """The facts of the dry run about a module: its order, its batch size, its first tensor and its output
    tensor.

    The output tensor is the tensor that other modules read. Shapes are per image. A channel axis is None if
    the dry run does not show it.
    """

    order: int
    batch: int
    in_shape: torch.Size
    out_shape: torch.Size
    in_axis: int | None
    out_axis: int | None
    # the place of the output tensor in the module's output; None: the output is a tensor
    place: int | str | None
    takes: str  # words for the first argument, if it is no tensor
    argument: str  # the name of the first tensor, if the module takes that tensor by keyword
    gives: str  # words for the output, if others read several of its tensors
    reads: bool  # whether the module computes with its first tensor
    fed_by: str  # the path of the module whose output, as it is, is the first tensor of every call
    layers: Layers = Layers()


def dry_run(network: nn.Module, *args: object, **kwargs: object) -> dict[str, Call]:
    """Runs `network` on one image (1, 3, H, W). Returns each module that was called, by dotted path."""
    seen: dict[str, _Seen] = {}
    channels = Channels()
    flow = Flow(network)
    entered: dict[str, tuple[int, str]] = {}
    makers: MutableMapping[torch.Tensor, str] = WeakIdKeyDictionary()

    def enter(name: str, _: nn.Module, args: tuple, kwargs: dict) -> None:
        with unwatched():
            flow.enter(name)
            given = next(tensors_in((args, kwargs)), None)
            entered[name] = channels.clock, '' if given is None else makers.get(given, '')

    def leave(name: str, _: nn.Module, args: tuple, kwargs: dict, out: object) -> None:
        with unwatched():
            flow.leave()
            if isinstance(out, torch.Tensor):
                makers[out] = name
            if name in seen:
                if seen[name].fed_by != entered[name][1]:
                    seen[name].fed_by = ''
            elif all(next(tensors_in(value), None) is not None for value in ((args, kwargs), out)):
                seen[name] = _Seen(channels, args, kwargs, out, *entered[name])

    handles = []
    for name, module in network.named_modules():
        handles += [
            module.register_forward_pre_hook(partial(enter, name), with_kwargs=True),
            module.register_forward_hook(partial(leave, name), with_kwargs=True),
        ]
    try:
        with torch.no_grad(), in_eval(network), uncompiled(), flow, channels:
            network(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    layers = flow.layers(seen)
    return {
        name: replace(module.call(order), layers=layers[name])
        for order, (name, module) in enumerate(seen.items())
    }


class _Seen:
    """One call of a module, noted when the module returns. `call` gives the facts after the network has
    returned.

    No tensor is kept.
    """

    def __init__(self, channels: Channels, args: tuple, kwargs: Mapping, out: Any, entered: int, fed_by: str):
        self.channels = channels
        self.left = channels.clock
        self.fed_by = fed_by
        given = next(tensors_in((args, kwargs)))
        self.batch = given.shape[0]
        self.in_shape = given.shape[1:]
        self.in_axes = channels.axes(given)
        self.reads = self.channels.used_after(self.in_axes, entered)
        self.takes = ''
        self.argument = ''
        if not args:
            self.argument = next((name for name, value in kwargs.items() if value is given), '')
            self.takes = '' if self.argument else 'its tensors in a keyword argument'
        elif args[0] is not given:
            self.takes = f'a {type(args[0]).__name__} first'
        if isinstance(out, torch.Tensor):
            entries: Mapping[Any, Any] = {None: out}
        else:
            entries = out if isinstance(out, Mapping) else dict(enumerate(out))
        self.kind = type(out).__name__
        self.gave: dict[int | str | None, list[tuple[torch.Size, tuple[int, ...]]]] = {}
        for place, entry in entries.items():
            tensors = tensors_in(entry)
            self.gave[place] = [(tensor.shape[1:], channels.axes(tensor)) for tensor in tensors]

    def call(self, order: int) -> Call:
        given = [(place, *tensor) for place, tensors in self.gave.items() for tensor in tensors]
        read = [tensor for tensor in given if self.channels.used_after(tensor[2], self.left)] or given
        place, out_shape, out_axes = read[0]
        several = max(len(read), len(self.gave[place]))
        gives = f'{several} tensors in a {self.kind}' if several > 1 else ''
        in_axis, out_axis = (self.channels.axis(axes) for axes in (self.in_axes, out_axes))
        if len(self.in_shape) == len(out_shape):
            in_axis, out_axis = in_axis or out_axis, out_axis or in_axis
        in_axis, out_axis = (
            -1 if axis is None and len(shape) < 3 else axis
            for axis, shape in ((in_axis, self.in_shape), (out_axis, out_shape))
        )
        return Call(
            order,
            self.batch,
            self.in_shape,
            out_shape,
            in_axis,
            out_axis,
            place,
            self.takes,
            self.argument,
            gives,
            self.reads,
            self.fed_by,
        )
