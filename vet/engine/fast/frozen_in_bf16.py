"""Saves memory of a frozen network under autocast: weights in the computing dtype, and half of what norms
keep.

Entered by door.py. fp8.py asks this file which weights are frozen.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Protocol

import torch
from timm.layers import LayerNorm
from torch import nn
from torch.autograd.function import once_differentiable

from vet.core.autograd import AutogradContext
from vet.core.delta import declared
from vet.core.multitask import Classifier
from vet.core.reweight import Reweight, all_split
from vet.core.shadow import parameter_or_none
from vet.engine.fast.frozen_norms import frozen_norms_compute
from vet.torch_private import is_recorded, layer_norm, layer_norm_gradient

NORMS = (nn.LayerNorm, LayerNorm)
# autocast casts the weights of these layers, and nothing else reads the weights
CAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@contextmanager
def weights_stored_in(dtype: torch.dtype, model: Classifier) -> Iterator[None]:
    """Within this context, weights and biases of linear layers and convolutions of a model's backbone are of
    `dtype`.

    Weights that train, and weights that a tuner's update is computed from, are left out. Afterwards, all
    weights are bit for bit as before.
    A weight in `dtype` needs no cast in each step. The backward pass would keep the result of the cast.
    Autocast would make the same tensors, so all results are the same, bit for bit.
    """
    exact_weights = {parameter: parameter.data for parameter in frozen_weights(model)}
    for parameter, exact in exact_weights.items():
        parameter.data = exact.to(dtype)
        # the CPU holds the exact weights, so that a GPU's memory is free
        exact_weights[parameter] = exact if exact.device.type == 'cpu' else exact.cpu()
    try:
        yield
    finally:
        for parameter, exact in exact_weights.items():
            parameter.data = exact.to(parameter.device)


def norm_inputs_kept_in(dtype: torch.dtype, model: Classifier) -> AbstractContextManager[None]:
    """Within this context, a frozen LayerNorm of the last axes keeps its float32 input for the backward pass
    in `dtype`.

    Outputs do not change. Gradients change by no more than the rounding of the gradients that autocast passes
    on.
    """
    return frozen_norms_compute(partial(_normed, dtype), NORMS, model)


def _normed(dtype: torch.dtype, norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    if is_recorded() or x.dtype != torch.float32:  # a compiler itself chooses the tensors that it keeps
        return type(norm).forward(norm, x)
    return Norm.apply(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps, dtype)


class _SavedWithShape(AutogradContext, Protocol):
    shape: tuple[int, ...]


class Norm(torch.autograd.Function):
    """A LayerNorm of x (…, *shape) in float32 that keeps x in `dtype`. Only x has a gradient."""

    @staticmethod
    def forward(
        ctx: _SavedWithShape,
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
    @once_differentiable  # the kept copy of x has no history
    def backward(ctx: _SavedWithShape, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, mean, rstd, weight, bias = ctx.saved_tensors
        dx = layer_norm_gradient(gradients[0], x.float(), ctx.shape, mean, rstd, weight, bias)
        return dx, *[None] * 5


def frozen_weights(model: Classifier) -> list[nn.Parameter]:
    """The weights and biases for `weights_stored_in`: frozen in every stage, and read by no tuner's
    update.
    """
    left: set[torch.Tensor | None] = {*model.trainable().values()}
    for edit in (
        edit for classifier in model.tasks.values() for edit in classifier.edits if isinstance(edit, Reweight)
    ):
        if declared(edit.delta).reads_weight or not all_split(edit.host):
            left |= {
                parameter_or_none(edit.host, edit.weight_name),
                parameter_or_none(edit.host, edit.bias_name),
            }
    return [
        parameter
        for classifier in model.tasks.values()
        for module in classifier.backbone.network.modules()
        if type(module) in CAST
        for parameter in module.parameters(recurse=False)
        if parameter not in left and not parameter.requires_grad and parameter.dtype == torch.float32
    ]
