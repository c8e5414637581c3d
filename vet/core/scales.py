"""Deltas that scale the output channels or the input channels of a layer."""

import torch
from torch import nn

from vet.core.delta import Delta
from vet.core.reweight import reweights_of


class Scale(Delta):
    """gamma W and gamma b + beta: scales the output channels, and shifts them with `shift`.

    The weight may be any weight with channels. gamma starts at 1 and beta at 0, both with normal noise of
    `std`.
    """

    reads_weight = False

    def __init__(self, channels: int, shift: bool = False, std: float = 0.0):
        super().__init__()
        self.gamma = nn.Parameter(1 + std * torch.randn(channels))
        self.beta = nn.Parameter(std * torch.randn(channels)) if shift else None

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """weight (out, …), bias (out,) or None -> the same shapes"""
        scaled = self.gamma.view(-1, *[1] * (weight.dim() - 1)).to(weight.dtype) * weight
        if bias is None:
            return scaled, None
        shifted = self.gamma.to(bias.dtype) * bias
        return scaled, shifted if self.beta is None else shifted + self.beta.to(bias.dtype)

    def splits(self, module: nn.Module) -> bool:
        """Whether the output's channels are at the axis that `split` needs."""
        return type(module) in (nn.Linear, nn.Conv2d)

    def split(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """gamma y + beta: tokens (…, out) or maps (B, out, H, W)."""
        shift = None if self.beta is None else self.beta.to(y.dtype)
        if isinstance(module, nn.Conv2d) and shift is not None:
            shift = shift[:, None, None]
        scaled = scaled_channels(module, y, self.gamma)
        return scaled if shift is None else scaled + shift


def scaled_channels(module: nn.Module, x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """gamma x, with gamma (C,): tokens (…, C) of a Linear or maps (B, C, H, W) of a convolution.

    With less precision than float32, computed as x + (gamma - 1) x, because bfloat16 rounds a gamma near 1 to
    1.
    """
    gamma = gamma[:, None, None] if isinstance(module, nn.Conv2d) else gamma
    if x.dtype in (torch.float32, torch.float64):
        return x * gamma.to(x.dtype)
    return torch.addcmul(x, x, (gamma - 1).to(x.dtype))


class ScaleInput(Delta):
    """W diag(gamma): the input channels of a Linear or of a convolution in `groups`. gamma starts at 1."""

    reads_weight = False
    turns_input = True

    def __init__(self, weight_shape: torch.Size, groups: int = 1):
        super().__init__()
        self.groups = groups
        self.gamma = nn.Parameter(torch.ones(weight_shape[1] * groups))

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """weight (out, in / groups, …), bias (out,) or None -> the same shapes"""
        by_group = weight.view(self.groups, -1, *weight.shape[1:])  # (groups, out / groups, in / groups, …)
        gamma = self.gamma.to(weight.dtype).view(self.groups, 1, -1, *[1] * (weight.dim() - 2))
        return (by_group * gamma).view_as(weight), bias

    def splits(self, module: nn.Module) -> bool:
        """Whether x may be scaled in place of W. No other delta may reweight the module."""
        return type(module) in (nn.Linear, nn.Conv2d) and len(reweights_of(module)) == 1

    def turned(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return scaled_channels(module, x, self.gamma)
