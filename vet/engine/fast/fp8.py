"""Products with frozen weights in 8 bits (float8, e4m3), forward and backward. The rest of the step is as in
bf16.

An experiment, for train.precision='fp8': for GPUs that multiply in 8 bits, from NVIDIA's Ada and Hopper on. A
CPU gives the same numbers, slowly. Entered by door.py.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import ScalingType

from vet.core.autograd import AutogradContext
from vet.core.multitask import Classifier
from vet.core.reweight import class_forward_replaced
from vet.engine.fast.frozen_in_bf16 import frozen_weights
from vet.errors import UserError

FORMAT = torch.float8_e4m3fn
LARGEST = torch.finfo(FORMAT).max
MULTIPLE = 16  # GPUs need weights whose sides are multiples of this number


def refuse_without_fp8(device: torch.device) -> None:
    """UserError if the device has no product of float8 matrices with a scale for each row."""
    rows, scales = rounded(torch.ones(MULTIPLE, MULTIPLE, device=device))
    try:
        _product(rows, scales, rows, scales)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f'train.precision is "fp8", but {device} with torch {torch.__version__} cannot multiply matrices '
            f'of float8 ({str(error).splitlines()[0]}). Float8 needs an NVIDIA GPU from Ada or Hopper on, or '
            'a newer torch on a CPU. Set train.precision to "bf16".'
        ) from error


@contextmanager
def products_in_fp8(model: Classifier) -> Iterator[None]:
    """Within this context, frozen linear layers of a model's backbone multiply in float8 while they train.

    A layer takes part if no tuner's update reads its weight, and if its sides are multiples of 16. UserError
    if there is no such layer. In eval mode, and after this context, all layers compute as before.
    """
    frozen = set(frozen_weights(model))
    layers = []
    for classifier in model.tasks.values():
        for module in classifier.backbone.network.modules():
            if type(module) is nn.Linear and frozen.issuperset(module.parameters()):
                if module.in_features % MULTIPLE == module.out_features % MULTIPLE == 0:
                    layers.append(module)
    if not layers:
        raise UserError(
            'train.precision is "fp8", but no linear layer of the backbone fits. The layer must be frozen, '
            f'no tuner may read its weight, and its sides must be multiples of {MULTIPLE}. Set '
            'train.precision to "bf16".'
        )
    with ExitStack() as stack:
        for layer in layers:
            W = layer.weight.detach()
            stack.enter_context(
                class_forward_replaced(layer, partial(_multiplied, layer, *rounded(W), *rounded(W.T)))
            )
        yield


def rounded(x_NC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix in float8, and the scales of its rows (N, 1).

    Each row is divided by its scale, so that its largest entry is the largest number of the format.
    """
    scale_N1 = (
        x_NC.abs().amax(1, keepdim=True).float().clamp(min=LARGEST * torch.finfo(torch.float32).tiny)
        / LARGEST
    )
    return (x_NC / scale_N1).to(FORMAT, memory_format=torch.contiguous_format), scale_N1


def _multiplied(module: nn.Linear, *args: torch.Tensor) -> torch.Tensor:
    *weights, x = args
    if not module.training or not torch.is_autocast_enabled(x.device.type):
        return nn.Linear.forward(module, x)
    return Product.apply(x.flatten(0, -2), *weights, module.bias).view(*x.shape[:-1], module.out_features)


class _SavedWithType(AutogradContext, Protocol):
    dtype: torch.dtype


class Product(torch.autograd.Function):
    """x W^T + b in bf16, with x (N, in) and b (out,) or None.

    W (out, in) and W^T are rounded by rows, with their scales. W and b are frozen. The gradient is rounded
    like x.
    """

    @staticmethod
    def forward(
        ctx: _SavedWithType,
        x: torch.Tensor,
        W: torch.Tensor,
        scale: torch.Tensor,
        WT: torch.Tensor,
        scale_T: torch.Tensor,
        b: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(WT, scale_T)
        ctx.dtype = x.dtype
        return _product(*rounded(x), W, scale, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: _SavedWithType, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        WT, scale_T = ctx.saved_tensors
        return _product(*rounded(gradients[0]), WT, scale_T).to(ctx.dtype), *[None] * 5


def _product(
    x: torch.Tensor,
    scale_x: torch.Tensor,
    W: torch.Tensor,
    scale_W: torch.Tensor,
    b: torch.Tensor | None = None,
) -> torch.Tensor:
    """x W^T + b of float8 x (N, in) and W (out, in), scales (N, 1) and (out, 1) -> bf16 (N, out)"""
    return F.scaled_mm(
        x,
        W.T,
        scale_x,
        ScalingType.RowWise,
        scale_W.T,
        ScalingType.RowWise,
        bias=b,
        output_dtype=torch.bfloat16,
    )
