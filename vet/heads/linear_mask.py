"""The simplest head for masks: one linear layer on each place of the last map."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vet.allowed import Classes
from vet.core.maps import MapHead
from vet.registry import HEADS


@HEADS.register_module()
class LinearMask(MapHead):
    """logits = up(W BN(m) + b): the last map m (B, C, h, w) -> (B, K, H, W), in float32.

    up is bilinear, to the size of the image. As in the linear evaluation of DINOv2 (Oquab et al. 2023,
    arXiv:2304.07193). W starts normal of std 0.02, b at zero.
    Parameters: 2 C + C K + K.
    """

    maps = 1

    def __init__(self, channels: tuple[int, ...], num_classes: Classes):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels[-1])
        self.conv = nn.Conv2d(channels[-1], num_classes, 1)
        bias: Any = self.conv.bias
        nn.init.trunc_normal_(self.conv.weight, std=0.02)
        nn.init.zeros_(bias)

    def forward(self, maps: Sequence[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        with torch.autocast(maps[-1].device.type, enabled=False):
            logits = self.conv(self.norm(maps[-1].float()))
            return F.interpolate(logits, size=tuple(size), mode='bilinear', align_corners=False)
