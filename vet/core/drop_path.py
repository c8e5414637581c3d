"""Stochastic depth: whole branches of an image are dropped in training.   Huang et al. 2016,
arXiv:1603.09382
"""

from typing import Any

import torch
from torch import nn


def is_drop_path(module: nn.Module) -> bool:
    """Whether the module is timm's DropPath or torchvision's StochasticDepth, under any library's name."""
    return type(module).__name__ in ('DropPath', 'StochasticDepth')


def drop_path_rate(module: Any) -> float:
    """The share of branches that a stochastic depth drops."""
    return float(module.p if type(module).__name__ == 'StochasticDepth' else module.drop_prob)


class DropPath(nn.Module):
    """The branch of an image becomes zero with the probability `p`, and else is divided by 1 - p. In training
    alone.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, …) -> the same shape"""
        if not self.training or not self.p:
            return x
        kept = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) >= self.p
        return x * kept / (1 - self.p)

    def extra_repr(self) -> str:
        return f'p={self.p:g}'
