"""Attention in bf16 on a CPU, with a backward pass by whole matrix products.

The products are faster than torch's kernel, and as near to float32. Entered by door.py.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from vet.core.autograd import AutogradContext
from vet.torch_private import float32_products_in_bf16, multiplies_bf16, softmax_gradient


def is_faster_by_products(device: torch.device) -> bool:
    """Whether the device is a CPU that multiplies bf16. Measured with AMX (Intel) and AVX-512 BF16 (AMD)."""
    return device.type == 'cpu' and multiplies_bf16()


class AttentionByProducts(TorchFunctionMode):
    """Within this context, `Attention` replaces scaled_dot_product_attention on a CPU under autocast to bf16.

    Calls with a mask or with dropout are not replaced.
    """

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention and len(args) == 3 and _is_plain(*args, **kwargs):
            return Attention.apply(*(each.to(torch.bfloat16) for each in args))
        return function(*args, **kwargs)


def _is_plain(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float = 0.0, **options: object
) -> bool:
    return (
        torch.is_grad_enabled()
        and torch.is_autocast_enabled('cpu')
        and torch.get_autocast_dtype('cpu') == torch.bfloat16
        and q.device.type == 'cpu'
        and q.dtype != torch.float64  # autocast does not change float64
        and q.ndim == 4
        and q.shape[:2] == k.shape[:2] == v.shape[:2]
        and not dropout_p
        and all(value is None or value is False for value in options.values())
    )


class Attention(torch.autograd.Function):
    """softmax(Q K^T / sqrt(d)) V of bf16 Q (B, H, M, d), K and V (B, H, N, d).

    The backward pass computes the softmax again.
    """

    @staticmethod
    def forward(ctx: AutogradContext, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(q, k, v)
        return F.scaled_dot_product_attention(q, k, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v, dy = (each.float() for each in (*ctx.saved_tensors, gradients[0]))
        scale = q.shape[-1] ** -0.5
        with float32_products_in_bf16():
            p = (q @ k.mT).mul_(scale).softmax(-1)
            dv = p.mT @ dy
            ds = softmax_gradient(dy @ v.mT, p).mul_(scale)
            return tuple(each.bfloat16() for each in (ds @ k, ds.mT @ q, dv))
