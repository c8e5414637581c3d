"""What a training under autocast keeps of a frozen network: weights in the dtype that it computes in, and
half of what norms keep.

Entered by door.py; fp8.py asks it which weights are frozen.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from timm.layers import LayerNorm
from torch import nn
from torch.autograd.function import once_differentiable

from vet.core.delta import declared
from vet.core.reweight import Reweight, all_split, forward_replaced, parameter_or_none
from vet.torch_private import is_recorded, layer_norm, layer_norm_gradient

NORMS = (nn.LayerNorm, LayerNorm)
CAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # whose weights autocast casts, and that read them alone


@contextmanager
def weights_stored_in(dtype: torch.dtype, model: Any) -> Iterator[None]:
    """Within, the weights and biases of the linear layers and convolutions of a model's backbone are of
    `dtype`, but for those that train and those that a tuner's update is computed from. After it, they are bit
    for bit what they were.

    They need no cast in every step, which the backward pass would keep. Autocast makes the same tensors of
    them, so all results are its results, bit for bit.
    """
    kept = {parameter: parameter.data for parameter in storable(model)}
    for parameter, exact in kept.items():
        parameter.data = exact.to(dtype)
        kept[parameter] = exact if exact.device.type == 'cpu' else exact.cpu()  # not both in a GPU's memory
    try:
        yield
    finally:
        for parameter, exact in kept.items():
            parameter.data = exact.to(parameter.device)


@contextmanager
def norm_inputs_kept_in(dtype: torch.dtype, model: Any) -> Iterator[None]:
    """Within, a frozen LayerNorm of the last axes keeps its float32 input for the backward pass in `dtype`.
    Outputs stay what they are; gradients change by no more than the rounding of those that autocast passes on
    anyway."""
    trained = {*model.trainable().values()}  # those that a later stage trains among them
    norms: list[Any] = [
        module
        for part in model.tasks.values()
        for module in part.backbone.network.modules()
        if type(module) in NORMS
        and 'forward' not in module.__dict__
        and not any(parameter.requires_grad or parameter in trained for parameter in module.parameters())
    ]
    with ExitStack() as stack:
        for norm in norms:
            stack.enter_context(forward_replaced(norm, partial(_normed, norm, dtype)))
        yield


def _normed(norm: Any, dtype: torch.dtype, x: torch.Tensor) -> torch.Tensor:
    if is_recorded() or x.dtype != torch.float32:  # a compiler chooses by itself what it keeps
        return type(norm).forward(norm, x)
    return Norm.apply(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps, dtype)


class Norm(torch.autograd.Function):
    """A LayerNorm of x (…, *shape) in float32 that keeps x in `dtype`, and has no gradient but that of x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        shape: tuple[int, ...],
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        y, mean, rstd = layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(x.to(dtype), mean, rstd, weight, bias)
        ctx.shape = shape
        return y

    @staticmethod
    @once_differentiable  # what is kept of x has no history
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, mean, rstd, weight, bias = ctx.saved_tensors
        dx = layer_norm_gradient(gradients[0], x.float(), ctx.shape, mean, rstd, weight, bias)
        return dx, *[None] * 5


def storable(model: Any) -> list[nn.Parameter]:
    """What `weights_stored_in` stores: weights and biases that are frozen in every stage, and that no tuner's
    update reads.
    """
    left: set[Any] = {*model.trainable().values()}
    for edit in (edit for part in model.tasks.values() for edit in part.edits if isinstance(edit, Reweight)):
        if declared(edit.delta).reads_weight or not all_split(edit.host):
            left |= {
                parameter_or_none(edit.host, edit.weight_name),
                parameter_or_none(edit.host, edit.bias_name),
            }
    return [
        parameter
        for part in model.tasks.values()
        for module in part.backbone.network.modules()
        if type(module) in CAST
        for parameter in module.parameters(recurse=False)
        if parameter not in left and not parameter.requires_grad and parameter.dtype == torch.float32
    ]
