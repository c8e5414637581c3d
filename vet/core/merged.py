"""A Linear or a convolution and its low-rank updates as one: x with the weight W + B A. Used by core.edits and core.deltas.

In float32 and with more positions in x than W has columns this is cheaper than B (A x): no pass over the output, and no second
gradient of x to add. In less precision W + B A would round a small update away.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vet.core.modes import is_recorded


def merges(module: Any, deltas: Sequence[Any], x: torch.Tensor) -> bool:
    """Whether `merged` computes the module's reweighted output, and gains by it."""
    return (not is_recorded() and all(getattr(delta, 'adds_product', False) for delta in deltas)
            and not any(parameter.requires_grad for parameter in module.parameters(recurse=False))
            and x.dtype == module.weight.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(x.device.type)
            and _positions(module, x) >= module.weight[0].numel())


def merged(module: Any, deltas: Sequence[Any], x: torch.Tensor) -> torch.Tensor:
    """x (…, in) to (…, out), or (N, in, H, W) to (N, out, H', W'); the updates of all deltas are one"""
    As, Bs = zip(*(delta.factors() for delta in deltas))
    A, B = (As[0], Bs[0]) if len(deltas) == 1 else (torch.cat(As), torch.cat(Bs, 1))
    if isinstance(module, nn.Linear):
        y = MergedLinear.apply(flattened(x, -1), module.weight, module.bias, A, B)
        return y.view(*x.shape[:-1], len(B))        # a view outside: whoever writes into one made inside is refused
    return MergedConv2d.apply(x, module.weight, module.bias, A, B, (module.stride, module.padding, module.dilation))


def _positions(module: nn.Module, x: torch.Tensor) -> float:
    """Rows that the weight is multiplied with; 0 of a module that does something else."""
    if type(module) is nn.Linear:
        return x.numel() / module.in_features
    if type(module) is nn.Conv2d and x.dim() == 4 and (module.groups, module.padding_mode) == (1, 'zeros') and (
            isinstance(module.padding, tuple)):
        return len(x) * x.shape[2] * x.shape[3] / (module.stride[0] * module.stride[1])
    return 0


class MergedLinear(torch.autograd.Function):
    """x (W + B A)^T + b: x (N, in), W (out, in), b (out,) or None, A (k, in), B (out, k). W and b have no gradient.

    W + B A is formed anew for the backward pass, and the full gradient of W never is.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None, A: torch.Tensor, B: torch.Tensor
                ) -> torch.Tensor:
        ctx.save_for_backward(x, W, A, B)
        return F.linear(x, W + B @ A, b)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, W, A, B = ctx.saved_tensors
        gy = gradients[0]
        gx = gy @ (W + B @ A) if ctx.needs_input_grad[0] else None
        gA = (gy @ B).T @ x if ctx.needs_input_grad[3] else None
        gB = gy.T @ (x @ A.T) if ctx.needs_input_grad[4] else None
        return gx, None, None, gA, gB


class MergedConv2d(torch.autograd.Function):
    """The convolution of x (N, in, H, W) with W + B A, where W (out, in, kH, kW), A (k, in kH kW), B (out, k); as MergedLinear.

    how: stride, padding and dilation.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None, A: torch.Tensor, B: torch.Tensor,
                how: tuple[Any, ...]) -> torch.Tensor:
        ctx.save_for_backward(x, W, A, B)
        ctx.how = how
        return F.conv2d(x, W + (B @ A).view_as(W), b, *how)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, W, A, B = ctx.saved_tensors
        gy, down, how = gradients[0], A.view(len(A), *W.shape[1:]), (None, *ctx.how, False, [0, 0], 1)
        gx = gA = gB = None
        if ctx.needs_input_grad[0]:
            gx = torch.ops.aten.convolution_backward(gy, x, W + (B @ A).view_as(W), *how, [True, False, False])[0]
        if ctx.needs_input_grad[3]:
            gh = F.conv2d(gy, B.T[:, :, None, None])
            gA = torch.ops.aten.convolution_backward(gh, x, down, *how, [False, True, False])[1].flatten(1)
        if ctx.needs_input_grad[4]:
            gB = flattened(gy, 1).T @ flattened(F.conv2d(x, down, None, *ctx.how), 1)
        return gx, None, None, gA, gB, None


def flattened(x: torch.Tensor, axis: int) -> torch.Tensor:
    """(…, k, …) -> (n, k), channels at `axis`"""
    return x.movedim(axis, -1).reshape(-1, x.shape[axis])
