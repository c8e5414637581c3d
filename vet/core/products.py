"""Products with low-rank updates: x with W + B A (merged in the step), and y + B A x (split).

Each product has its autograd function here. Used by core.reweight and by the deltas.

In float32, if x has more positions than W has columns, the merged product is cheaper than B (A x): it needs
no pass over the output, and no second gradient of x. With less precision, W + B A would round a small update
away.
"""

from collections.abc import Sequence
from typing import Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import nn

from vet.core.autograd import AutogradContext
from vet.core.delta import Delta, declared
from vet.torch_private import Sides, convolution_gradients, is_recorded

Layer = nn.Linear | nn.Conv2d
How = tuple[Sides, Sides, Sides]  # of a convolution: stride, padding and dilation


def can_merge(module: nn.Module, deltas: Sequence[nn.Module], x: torch.Tensor) -> TypeGuard[Layer]:
    """Whether `merged_product` computes the module's reweighted output, and is faster."""
    return (
        not is_recorded()
        and all(declared(delta).adds_product() for delta in deltas)
        and isinstance(module, Layer)
        and not any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        and x.dtype == module.weight.dtype in (torch.float32, torch.float64)
        and (x.is_meta or not torch.is_autocast_enabled(x.device.type))
        and _positions(module, x) >= module.weight[0].numel()
    )


def merged_product(module: Layer, deltas: Sequence[Delta], x: torch.Tensor) -> torch.Tensor:
    """x (…, in) to (…, out), or (N, in, H, W) to (N, out, H', W').

    The updates of all deltas are one product.
    """
    As, Bs = zip(*(delta.factors() for delta in deltas))
    A, B = (As[0], Bs[0]) if len(deltas) == 1 else (torch.cat(As), torch.cat(Bs, 1))
    if isinstance(module, nn.Linear):
        y = MergedLinear.apply(flattened(x, -1), module.weight, module.bias, A, B)
        return y.view(*x.shape[:-1], len(B))  # a view outside: whoever writes into one made inside is refused
    return MergedConv2d.apply(
        x, module.weight, module.bias, A, B, (module.stride, module.padding, module.dilation)
    )


def _positions(module: nn.Module, x: torch.Tensor) -> float:
    """The number of rows that are multiplied with the weight. 0 for a module that computes something else."""
    if type(module) is nn.Linear:
        return x.numel() / module.in_features
    if (
        type(module) is nn.Conv2d
        and x.dim() == 4
        and (module.groups, module.padding_mode) == (1, 'zeros')
        and (isinstance(module.padding, tuple))
    ):
        return len(x) * x.shape[2] * x.shape[3] / (module.stride[0] * module.stride[1])
    return 0


class MergedLinear(torch.autograd.Function):
    """x (W + B A)^T + b: x (N, in), W (out, in), b (out,) or None, A (k, in), B (out, k). W and b have no
    gradient.

    The backward pass forms W + B A again, and never forms the full gradient of W.
    """

    @staticmethod
    def forward(
        ctx: AutogradContext,
        x: torch.Tensor,
        W: torch.Tensor,
        b: torch.Tensor | None,
        A: torch.Tensor,
        B: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, W, A, B)
        return F.linear(x, W + B @ A, b)

    @staticmethod
    def backward(ctx: AutogradContext, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, W, A, B = ctx.saved_tensors
        gy = gradients[0]
        gx = gy @ (W + B @ A) if ctx.needs_input_grad[0] else None
        gA = (gy @ B).T @ x if ctx.needs_input_grad[3] else None
        gB = gy.T @ (x @ A.T) if ctx.needs_input_grad[4] else None
        return gx, None, None, gA, gB


class _SavedOfConv2d(AutogradContext, Protocol):
    how: How


class MergedConv2d(torch.autograd.Function):
    """The convolution of x (N, in, H, W) with W + B A. See MergedLinear.

    W (out, in, kH, kW), A (k, in kH kW), B (out, k). how: stride, padding and dilation.
    """

    @staticmethod
    def forward(
        ctx: _SavedOfConv2d,
        x: torch.Tensor,
        W: torch.Tensor,
        b: torch.Tensor | None,
        A: torch.Tensor,
        B: torch.Tensor,
        how: How,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, W, A, B)
        ctx.how = how
        return F.conv2d(x, W + (B @ A).view_as(W), b, *how)

    @staticmethod
    def backward(ctx: _SavedOfConv2d, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, W, A, B = ctx.saved_tensors
        gy = gradients[0]
        down = A.view(len(A), *W.shape[1:])
        how = ctx.how
        gx = gA = gB = None
        if ctx.needs_input_grad[0]:
            gx = convolution_gradients(gy, x, W + (B @ A).view_as(W), how, 'x')
        if ctx.needs_input_grad[3]:
            gh = F.conv2d(gy, B.T[:, :, None, None])
            gA = convolution_gradients(gh, x, down, how, 'weight').flatten(1)
        if ctx.needs_input_grad[4]:
            gB = flattened(gy, 1).T @ flattened(F.conv2d(x, down, None, *how), 1)
        return gx, None, None, gA, gB, None


def through(module: nn.Module, x: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """B A x, computed as `module` (a Linear or a plain Conv2d) would compute it; A (k, in) and B (out, k)"""
    h = down(module, x, A)
    return F.linear(h, B) if isinstance(module, nn.Linear) else F.conv2d(h, B[:, :, None, None])


def down(module: nn.Module, x: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """A x, computed as `module` would compute it: (…, k) or (B, k, H', W')"""
    if isinstance(module, nn.Linear):
        return F.linear(x, A)
    assert isinstance(module, nn.Conv2d)
    weight = A.view(len(A), module.in_channels, *module.kernel_size)
    padding: tuple[int, ...] | str | int = module.padding
    if module.padding_mode != 'zeros':
        x, padding = F.pad(x, _sides(module), module.padding_mode), 0
    return F.conv2d(x, weight, None, module.stride, padding, module.dilation, module.groups)


def _sides(module: nn.Conv2d) -> list[int]:
    """How much F.pad adds for a convolution: left, right, top, bottom."""
    sides: list[int] = []
    for axis in (1, 0):
        if isinstance(module.padding, str):  # 'same' or 'valid'
            total = module.dilation[axis] * (module.kernel_size[axis] - 1) * (module.padding == 'same')
            sides += [total // 2, total - total // 2]
        else:
            sides += [module.padding[axis]] * 2
    return sides


def add_product(
    module: nn.Module, x: torch.Tensor, y: torch.Tensor, A: torch.Tensor, B: torch.Tensor
) -> torch.Tensor:
    """y + B A x. y is the fresh output of `module`, so the function may write into y."""
    is_linear = isinstance(module, nn.Linear)
    channels_last = y.is_contiguous() if is_linear else y.is_contiguous(memory_format=torch.channels_last)
    if channels_last and not is_recorded():
        return AddProduct.apply(y, down(module, x, A), B, -1 if is_linear else 1)
    return y + through(module, x, A, B)


class _SavedOfProduct(AutogradContext, Protocol):
    axis: int


class AddProduct(torch.autograd.Function):
    """y + B h, written into y. y (…, out, …), h (…, k, …), B (out, k).

    The channels are at `axis`, last in memory. Computed in y's dtype. No tensor of y's size is made, forward
    or backward. y must be the first argument: if y is a view, as a Linear's output is in torch 2.11, autograd
    takes the first gradient for that of y.
    """

    @staticmethod
    def forward(
        ctx: _SavedOfProduct, y: torch.Tensor, h: torch.Tensor, B: torch.Tensor, axis: int
    ) -> torch.Tensor:
        y.movedim(axis, -1).view(-1, len(B)).addmm_(flattened(h, axis).to(y.dtype), B.to(y.dtype).T)
        ctx.mark_dirty(y)
        # saves inputs of this function; a tensor that is made here would have no history in a second backward
        ctx.save_for_backward(h, B)
        ctx.axis = axis
        return y

    @staticmethod
    def backward(ctx: _SavedOfProduct, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        h, B = ctx.saved_tensors
        gy, shape = flattened(gradients[0], ctx.axis), h.movedim(ctx.axis, -1).shape
        gh = (gy @ B.to(gy.dtype)).view(shape).movedim(-1, ctx.axis) if ctx.needs_input_grad[1] else None
        gB = (gy.T @ flattened(h, ctx.axis).to(gy.dtype)).to(B.dtype) if ctx.needs_input_grad[2] else None
        return gradients[0], gh, gB, None


def flattened(x: torch.Tensor, axis: int) -> torch.Tensor:
    """(…, k, …) -> (n, k), channels at `axis`"""
    return x.movedim(axis, -1).reshape(-1, x.shape[axis])
