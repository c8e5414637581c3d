"""A small head for masks that reads maps of several scales."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from vet.allowed import Classes
from vet.core.maps import MapHead
from vet.registry import HEADS

GROUPS = 8  # of GroupNorm


@HEADS.register_module()
class FPNMask(MapHead):
    """Maps of up to four stages -> logits (B, K, H, W), in float32: torchvision's feature pyramid, summed.

    Each map is normalised (BN). A 1 x 1 convolution brings the map to `width` channels, and the coarser maps
    are added (Lin et al. 2017, arXiv:1612.03144). A 3 x 3 convolution follows. The maps are enlarged to the
    finest map and summed, as in the semantic branch of Panoptic FPN (Kirillov et al. 2019, arXiv:1901.02446).
    GroupNorm, ReLU, a 1 x 1 convolution and a bilinear enlargement give the logits.
    The maps of a plain ViT have one size. They are resized first, by 4, 2, 1 and 1/2, as in ViTDet (Li et al.
    2022, arXiv:2203.16527).
    width: the channels of the pyramid, a multiple of 8.
    """

    maps = 4

    def __init__(
        self,
        channels: tuple[int, ...],
        num_classes: Classes,
        width: Annotated[int, Interval(ge=8, le=1024)] = 64,
    ):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in channels)
        self.pyramid = FeaturePyramidNetwork(list(channels), width)
        self.last = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.ReLU(), nn.Conv2d(width, num_classes, 1))

    def forward(self, maps: Sequence[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        with torch.autocast(maps[-1].device.type, enabled=False):
            scaled = _scaled([norm(one.float()) for norm, one in zip(self.norms, maps, strict=True)])
            levels = self.pyramid(OrderedDict((str(place), one) for place, one in enumerate(scaled)))
            first, *others = levels.values()
            summed = sum((_resized(other, first.shape[-2:]) for other in others), start=first)
            return _resized(self.last(summed), tuple(size))


def _scaled(maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """The maps, from fine to coarse. Maps of one size become maps of several sizes."""
    sizes = {one.shape[-2:] for one in maps}
    if len(sizes) > 1 or len(maps) == 1:
        return maps
    height, width = sizes.pop()
    scaled = []
    for place, one in enumerate(maps):
        factor = 2 ** (len(maps) - 2 - place)
        scaled.append(_resized(one, (max(1, int(height * factor)), max(1, int(width * factor)))))
    return scaled


def _resized(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(x, size=tuple(size), mode='bilinear', align_corners=False)
