"""Puts replacements in the place of a network's parameters and buffers for a while, such as tensors without
numbers.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vet.torch_private import buffers_of, parameters_of


@contextmanager
def replaced(
    modules: Iterable[nn.Module], replace: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[dict[int, object]]:
    """Within this context, replacements stand for the modules' parameters and buffers, if they differ from
    these.

    Gives {id of a tensor: replacement}.
    """
    made: dict[int, Any] = {}
    kept: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    try:
        for module in dict.fromkeys(modules):
            for tensors in (parameters_of(module), buffers_of(module)):
                for name, tensor in list(tensors.items()):
                    if tensor is None:
                        continue
                    if id(tensor) not in made:
                        made[id(tensor)] = _like(tensor, replace(tensor.data))
                    if made[id(tensor)] is not tensor:
                        kept.append((tensors, name, tensor))
                        tensors[name] = made[id(tensor)]
        yield made
    finally:
        for tensors, name, tensor in kept:
            tensors[name] = tensor


def without_numbers(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's shape on the meta device, in float32."""
    return in_float32(tensor.to('meta'))


def in_float32(tensor: torch.Tensor) -> torch.Tensor:
    """A network and its tuners may have two types until a caller or an autocast gives them the same type."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _like(tensor: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    if made.dtype == tensor.dtype and made.device == tensor.device:
        return tensor
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
