"""A Linear and its low-rank updates as one product, x (W + B A)^T + b. Used by core.edits alone.

In float32 and with more tokens than W has columns this is cheaper than B (A x): no pass over the output, and none over the input's
gradient. In less precision W + B A would round a small update away.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vet.core.modes import is_recorded


def merges(module: nn.Module, deltas: Sequence[Any], x: torch.Tensor) -> bool:
    """Whether `merged` computes the module's reweighted output, and gains by it."""
    return (not is_recorded() and type(module) is nn.Linear and all(getattr(delta, 'adds_product', False) for delta in deltas)
            and not any(parameter.requires_grad for parameter in module.parameters(recurse=False))
            and x.dtype == module.weight.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(x.device.type)
            and x.numel() >= module.in_features ** 2)


def merged(module: Any, deltas: Sequence[Any], x: torch.Tensor) -> torch.Tensor:
    """x (…, in) to (…, out); the updates of all deltas are one"""
    As, Bs = zip(*(delta.factors() for delta in deltas))
    A, B = (As[0], Bs[0]) if len(deltas) == 1 else (torch.cat(As), torch.cat(Bs, 1))
    return MergedLinear.apply(x, module.weight, module.bias, A, B)


class MergedLinear(torch.autograd.Function):
    """x (W + B A)^T + b: x (…, in), W (out, in), b (out,) or None, A (k, in), B (out, k). W and b have no gradient.

    W + B A is formed anew for the backward pass, and the full gradient of W never is.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None, A: torch.Tensor, B: torch.Tensor
                ) -> torch.Tensor:
        ctx.save_for_backward(x, W, A, B)
        return F.linear(x, torch.addmm(W, B, A), b)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, W, A, B = ctx.saved_tensors
        rows, inputs = gradients[0].reshape(-1, len(W)), x.reshape(-1, W.shape[1])
        gx = (rows @ torch.addmm(W, B, A)).view_as(x) if ctx.needs_input_grad[0] else None
        gA = (rows @ B).T @ inputs if ctx.needs_input_grad[3] else None
        gB = rows.T @ (inputs @ A.T) if ctx.needs_input_grad[4] else None
        return gx, None, None, gA, gB
