"""Saves memory and time of frozen batch norms: they keep no input for the backward pass.

A batch norm in eval mode scales and shifts each channel. Its gradient needs only the scale. torch keeps the
input too, and computes the gradients of the scale and of the shift, which nobody reads. Entered by door.py.
"""

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from vet.core.autograd import AutogradContext
from vet.core.multitask import Classifier
from vet.engine.fast.frozen_norms import frozen_norms_compute
from vet.torch_private import is_recorded

NORMS = (nn.BatchNorm2d, BatchNormAct2d)


def batch_norm_inputs_forgotten(model: Classifier) -> AbstractContextManager[None]:
    """Within this context, a frozen batch norm in eval mode keeps no input for the backward pass.

    Outputs do not change. Gradients differ only by rounding.
    """
    return frozen_norms_compute(_normed, NORMS, model)


def _normed(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    if is_recorded() or norm.training or norm.running_var is None or not x.requires_grad:
        return type(norm).forward(norm, x)
    y = FrozenBatchNorm.apply(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
    return norm.act(norm.drop(y)) if isinstance(norm, BatchNormAct2d) else y


class FrozenBatchNorm(torch.autograd.Function):
    """A batch norm of x (N, C, H, W) with its own statistics. Only x has a gradient.

    gx = gy weight / sqrt(var + eps), channel by channel.
    """

    @staticmethod
    def forward(
        ctx: AutogradContext,
        x: torch.Tensor,
        mean: torch.Tensor,
        var: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
    ) -> torch.Tensor:
        scale = (var + eps).rsqrt()
        ctx.save_for_backward(scale if weight is None else scale * weight)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: AutogradContext, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (scale,) = ctx.saved_tensors
        return gradients[0] * scale.to(gradients[0].dtype)[:, None, None], *[None] * 5
