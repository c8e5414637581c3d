"""A low-rank branch from the pixels to the network's output.

No gradient passes through the frozen network.
"""

import torch
from torch import nn

from vet.allowed import Count, Positive
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UserError
from vet.registry import TUNERS
from vet.torch_private import hooks_before


@TUNERS.register_module()
class PixelBranch(Tuner):
    """f(x) + scale B A vec(x), with A (rank, 3 H W) and B (C, rank).

    f: the frozen backbone, which gives features, or logits if the backbone keeps its classifier. x: the
    normalised images. All images must have the backbone's size. A starts as nn.Linear draws it, B at zero.
    rank: the rank of B A.
    scale: the factor of the branch.
    Parameters: rank (3 H W + C); VGG-19 with its 1000 logits at 224 pixels, rank 10: 1,515,280.
    """

    def __init__(self, rank: Count = 10, scale: Positive = 1.0):
        super().__init__('backbone')
        if rank < 1 or scale == 0:
            raise UserError(
                f'rank is {rank} and scale is {scale}; rank must be at least 1, and scale not be 0.'
            )
        self.rank = rank
        self.scale = scale

    def tune(self, site: Site) -> None:
        if hooks_before(site.module):
            raise refuse(self, site, 'images that no other tuner edits before the backbone takes them')
        self.after(site, Branch(site.in_shape, site.out_shape[0], self.rank, self.scale))


class Branch(nn.Module):
    def __init__(self, image_shape: torch.Size, features: int, rank: int, scale: float):
        super().__init__()
        self.image_shape = image_shape
        self.scale = scale
        self.A, self.B = (
            nn.Linear(image_shape.numel(), rank, bias=False),
            nn.Linear(rank, features, bias=False),
        )
        nn.init.zeros_(self.B.weight)

    def forward(self, images: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W), features (B, C) -> (B, C)"""
        if images.shape[1:] != self.image_shape:
            raise UserError(
                f'the branch was made for images of {tuple(self.image_shape)}; given: '
                f'{tuple(images.shape[1:])}. Give images of the first shape, or set '
                'model.backbone.preprocessing.size.'
            )
        return features + self.scale * self.B(self.A(images.flatten(1))).to(features.dtype)
