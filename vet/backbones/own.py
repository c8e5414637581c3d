"""A user's own network as the backbone of a classifier. The network keeps its classifier.

backbones/network.py and own_backbone.py make such backbones.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from vet.backbones.libraries import image_size_of, layout_of, resampled_of
from vet.core.backbone import Backbone, Description
from vet.core.description import describe
from vet.core.moving_buffers import moving_buffers
from vet.core.preprocessing import Preprocessing
from vet.core.written_example import written


class OwnBackbone(Backbone):
    """A user's network. It returns logits (K,) for each image, as a tensor or in an object of its library.

    whole: the names of the parameters that train whole, and of the buffers that change in training.
    """

    described: Description
    pooling = 'build it with a classifier, which gives logits (K,) for each image'

    def __init__(self, network: nn.Module, whole: Sequence[str], preprocessing: Mapping[str, object]):
        size = image_size_of(network)
        wanted = Preprocessing().with_changes(dict(size=size) if size else {})
        identity = dict(type='network', name=type(network).__name__)
        super().__init__(network, layout_of(network), wanted.with_changes(preprocessing), identity, wanted)
        self.moving: list[str] = []
        self._describe(whole)

    def keep_moving(self) -> None:
        """Finds the buffers `moving` that the forward changes, which train whole too."""
        self.moving = moving_buffers(self.network, self.example())
        if self.moving:
            self._describe([*self.whole, *self.moving])

    def _describe(self, whole: Sequence[str]) -> None:
        described = describe(self.network, [*whole, *resampled_of(self.network)])
        self.identity = self.origin = dict(self.identity, sha256=described['sha256'])
        self.whole = list(whole)
        self.described = dict(described, whole=self.whole, example=written(self.example()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) -> logits (B, K)"""
        out = self.network(images)
        place = self.sites.calls[''].place
        return out if place is None else out[place]
