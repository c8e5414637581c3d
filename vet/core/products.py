"""Products with low-rank updates: x with W + B A (fused in the step), and y + B A x (split, or plain).

Each product has its autograd function here. Used by core.reweight and by the deltas. core/routes.py names the
routes, and holds the choice of a training. Without a choice, `rule` decides.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from vet.core.autograd import AutogradContext
from vet.core.delta import Delta
from vet.core.routes import CONVOLVED, FUSED, PLAIN, SPLIT, chosen_route
from vet.torch_private import Sides, convolution_gradients, is_recorded

How = tuple[Sides, Sides, Sides]  # of a convolution: stride, padding and dilation
POINT: How = ((1, 1), (0, 0), (1, 1))  # of a 1 x 1 convolution


def rule(module: nn.Module, x: torch.Tensor) -> str:
    """The route of a layer for which no training has chosen a route.

    If x has more positions than W has columns, the fused product is cheaper than B (A x). The fused product
    needs no pass over the output, and no second gradient of x.
    """
    if isinstance(module, nn.Linear):
        return FUSED if x.numel() >= module.in_features**2 else SPLIT
    assert isinstance(module, nn.Conv2d)
    positions = x[:, 0].numel() / (module.stride[0] * module.stride[1])
    return FUSED if positions >= module.weight[0].numel() else SPLIT


def can_fuse(module: nn.Module, deltas: Sequence[Delta], x: torch.Tensor) -> bool:
    """Whether the layer can compute its reweighted output with W + B A, in float32 or float64."""
    return _is_one_product(module, deltas, x) and _is_fusible(module, x)


def one_product(module: nn.Module, deltas: Sequence[Delta], x: torch.Tensor) -> torch.Tensor | None:
    """The output of the module with the updates of all deltas, by one function, forward and backward.

    x (…, in) to (…, out), or (N, in, H, W) to (N, out, H', W').
    None: the module or its route has no such function. Then each delta adds to the output of the module.
    """
    if not _is_one_product(module, deltas, x) or (route := chosen_route(module)) == PLAIN:
        return None
    fuses = _is_fusible(module, x) and (route or rule(module, x)) in (FUSED, CONVOLVED)
    if isinstance(module, nn.Conv2d):
        if not fuses:
            return None
        how = module.stride, module.padding, module.dilation
        return FusedConv2d.apply(x, module.weight, module.bias, *_stacked(deltas), how, route == CONVOLVED)
    assert isinstance(module, nn.Linear)
    dtype = x.dtype if fuses else _dtype(x)  # outside autocast alone, the product is fused
    bias = module.bias
    A, B = _stacked(deltas)
    y = (FusedLinear if fuses else SplitLinear).apply(
        x.reshape(-1, module.in_features).to(dtype),
        module.weight.to(dtype),
        bias if bias is None else bias.to(dtype),
        A.to(dtype),
        B.to(dtype),
    )
    # a view outside: whoever writes into one made inside is refused
    return y.view(*x.shape[:-1], B.shape[0])


def _is_one_product(module: nn.Module, deltas: Sequence[Delta], x: torch.Tensor) -> bool:
    """Whether one function may compute the output: of a frozen Linear or convolution, and of products."""
    if type(module) not in (nn.Linear, nn.Conv2d) or is_recorded():
        return False
    weight = module.weight
    bias = module.bias
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return False
    if x.dtype != weight.dtype and not _is_autocast(x):  # the layer refuses x
        return False
    return all([delta.adds_product() for delta in deltas])


def _is_fusible(module: nn.Module, x: torch.Tensor) -> bool:
    """Whether W + B A loses no small update, and FusedConv2d knows how a convolution pads."""
    if x.dtype not in (torch.float32, torch.float64) or _is_autocast(x):
        return False
    return isinstance(module, nn.Linear) or (
        x.dim() == 4
        and (module.groups, module.padding_mode) == (1, 'zeros')
        and isinstance(module.padding, tuple)
    )


def _dtype(x: torch.Tensor) -> torch.dtype:
    """The type in which a layer computes x: that of autocast, or that of x."""
    return torch.get_autocast_dtype(x.device.type) if _is_autocast(x) else x.dtype


def _is_autocast(x: torch.Tensor) -> bool:
    """Whether autocast chooses the type of products of x. Autocast does not change float64."""
    return not x.is_meta and x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type)


def _stacked(deltas: Sequence[Delta]) -> tuple[torch.Tensor, torch.Tensor]:
    """A (k, in) and B (out, k) of one product, which is the sum of all updates."""
    if len(deltas) == 1:
        return deltas[0].factors()
    As, Bs = zip(*(delta.factors() for delta in deltas))
    return torch.cat(As), torch.cat(Bs, 1)


class FusedLinear(torch.autograd.Function):
    """x (W + B A)^T + b: x (N, in), W (out, in), b (out,) or None, A (k, in), B (out, k). W and b have no
    gradient.

    The backward pass forms W + B A again, and never forms the full gradient of W. In products with gy, the
    thin factor stands first: processors compute B^T gy^T faster than gy B.
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
        gA = (B.T @ gy.T) @ x if ctx.needs_input_grad[3] else None
        gB = ((A @ x.T) @ gy).T if ctx.needs_input_grad[4] else None
        return gx, None, None, gA, gB


class SplitLinear(torch.autograd.Function):
    """x W^T + b + x A^T B^T. See FusedLinear. No tensor of the output's size is made beside the output."""

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
        return F.linear(x, W, b).addmm_(x @ A.T, B.T)

    @staticmethod
    def backward(ctx: AutogradContext, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, W, A, B = ctx.saved_tensors
        gy = gradients[0]
        gh = B.T @ gy.T
        gx = (gy @ W).addmm_(gh.T, A) if ctx.needs_input_grad[0] else None
        gA = gh @ x if ctx.needs_input_grad[3] else None
        gB = ((A @ x.T) @ gy).T if ctx.needs_input_grad[4] else None
        return gx, None, None, gA, gB


class _SavedOfConv2d(AutogradContext, Protocol):
    how: How
    convolves: bool


class FusedConv2d(torch.autograd.Function):
    """The convolution of x (N, in, H, W) with W + B A. See FusedLinear.

    W (out, in, kH, kW), A (k, in kH kW), B (out, k). how: stride, padding and dilation. convolves: see
    `gradient_of_up`.
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
        convolves: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, W, A, B)
        ctx.how = how
        ctx.convolves = convolves
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
            gB = gradient_of_up(F.conv2d(x, down, None, *how), gy, 1, ctx.convolves)
        return gx, None, None, gA, gB, None, None


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
        x = F.pad(x, _sides(module), module.padding_mode)
        padding = 0
    return F.conv2d(x, weight, None, module.stride, padding, module.dilation, module.groups)


def _sides(module: nn.Conv2d) -> list[int]:
    """The padding of a convolution as F.pad takes it: left, right, top, bottom."""
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
    """y + B A x. y is the fresh output of `module`, so the function may write into y, except by the plain
    route.
    """
    is_linear = isinstance(module, nn.Linear)
    channels_last = y.is_contiguous() if is_linear else y.is_contiguous(memory_format=torch.channels_last)
    if channels_last and not is_recorded() and chosen_route(module) != PLAIN:
        convolves = not is_linear and chosen_route(module) == CONVOLVED
        return AddProduct.apply(y, down(module, x, A), B, -1 if is_linear else 1, convolves)
    return y + through(module, x, A, B)


class _SavedOfProduct(AutogradContext, Protocol):
    axis: int
    convolves: bool


class AddProduct(torch.autograd.Function):
    """y + B h, written into y. y (…, out, …), h (…, k, …), B (out, k).

    The channels are at `axis`, last in memory. Computed in y's dtype. No tensor of y's size is made, forward
    or backward. y must be the first argument: if y is a view, as a Linear's output is in torch 2.11, autograd
    takes the first gradient for that of y.
    """

    @staticmethod
    def forward(
        ctx: _SavedOfProduct, y: torch.Tensor, h: torch.Tensor, B: torch.Tensor, axis: int, convolves: bool
    ) -> torch.Tensor:
        y.movedim(axis, -1).view(-1, len(B)).addmm_(flattened(h, axis).to(y.dtype), B.to(y.dtype).T)
        ctx.mark_dirty(y)
        # saves inputs of this function; a tensor that is made here would have no history in a second backward
        ctx.save_for_backward(h, B)
        ctx.axis = axis
        ctx.convolves = convolves
        return y

    @staticmethod
    def backward(ctx: _SavedOfProduct, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        h, B = ctx.saved_tensors
        gy = gradients[0]
        gh = None
        if ctx.needs_input_grad[1]:
            up = B.T.to(gy.dtype)
            if ctx.axis == 1:  # the thin product of a convolution is faster than that of a matrix
                gh = F.conv2d(gy, up[:, :, None, None])
            else:
                gh = (up @ flattened(gy, -1).T).T.view(h.shape)
        gB = None
        if ctx.needs_input_grad[2]:
            gB = gradient_of_up(h.to(gy.dtype), gy, ctx.axis, ctx.convolves).to(B.dtype)
        return gy, gh, gB, None, None


def gradient_of_up(h: torch.Tensor, gy: torch.Tensor, axis: int, convolves: bool) -> torch.Tensor:
    """The gradient (out, k) of B in B h. h (…, k, …), gy (…, out, …), channels at `axis`.

    convolves: as a convolution computes it. Some processors are faster so, and others by one product.
    """
    if convolves:
        shape = h.new_empty(gy.shape[1], h.shape[1], 1, 1)
        return convolution_gradients(gy, h, shape, POINT, 'weight').flatten(1)
    return (flattened(h, axis).T @ flattened(gy, axis)).T


def flattened(x: torch.Tensor, axis: int) -> torch.Tensor:
    """(…, k, …) -> (n, k), channels at `axis`"""
    return x.movedim(axis, -1).reshape(-1, x.shape[axis])
