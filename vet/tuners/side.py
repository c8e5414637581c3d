"""Side-tuning: a small network beside the frozen network, joined at its features.

No gradient passes through the backbone.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import nn

from vet.allowed import OneOf, PluginOf
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UserError
from vet.registry import BACKBONES, TUNERS

Side = Annotated[str, OneOf(('fcn4',))] | Annotated[Mapping[str, Any], PluginOf('backbone')]


@TUNERS.register_module()
class SideTuning(Tuner):
    """sigmoid(a) f(x) + (1 - sigmoid(a)) g(x).   Zhang et al. 2020, arXiv:1912.13503, sec. 3

    f: the backbone's pooled features. g: a side network on the same images. a: learned; the paper's alpha,
    squashed as in the authors' code. a starts at 0, so both networks have the weight one half.
    side: 'fcn4', four convolutions; or a backbone as in model.backbone, such as dict(type='torchvision',
        name='alexnet'). The whole side backbone trains, from its weights. A linear layer without bias maps
        its features to the C features of the backbone. The side backbone gets images that are normalised for
        the backbone, and must take their size.
    Against the released code: ModelScope's SideTune in output, gradients and start with 'fcn4'.
    Parameters: 26,033 + 65 C with 'fcn4' (ViT-B/16: 75,953), 1 + those of the side backbone + C' C with
        another.
    """

    identity_at_start = False

    def __init__(self, side: Side = 'fcn4'):
        super().__init__('backbone')
        if side != 'fcn4' and not isinstance(side, Mapping):
            raise UserError(
                f'side is {side!r}; allowed: "fcn4", or a backbone such as dict(type="torchvision", '
                'name="alexnet").'
            )
        self.side = side

    def tune(self, site: Site) -> None:
        features = site.out_shape[0]
        side = FCN4(features) if isinstance(self.side, str) else SideBackbone(dict(self.side), features)
        try:
            with torch.no_grad():
                side.eval()(torch.zeros(1, *site.in_shape))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise refuse(self, site, f'images that its side network takes ({error})') from error
        self.after(site, Blend(side.train()))


class Blend(nn.Module):
    def __init__(self, side: nn.Module):
        super().__init__()
        self.side = side
        self.a = nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W), features (B, C) -> (B, C)"""
        share = self.a.sigmoid()
        return share * features + (1 - share) * self.side(images)


class FCN4(nn.Sequential):
    """Four stages of 3 x 3 convolution, GroupNorm(2) and ReLU, then the mean, then a Linear to C.

    The stages have 16, 16 (stride 2), 32 (stride 2) and 64 channels.
    """

    def __init__(self, features: int):
        stages: list[nn.Module] = []
        for inside, out, stride, padding in ((3, 16, 1, 1), (16, 16, 2, 0), (16, 32, 2, 0), (32, 64, 1, 0)):
            stages += [
                nn.Conv2d(inside, out, 3, stride, padding, bias=False),
                nn.GroupNorm(2, out),
                nn.ReLU(),
            ]
        super().__init__(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, features))


class SideBackbone(nn.Module):
    """A backbone that trains whole, and a linear layer from its features to the frozen backbone's
    features.
    """

    def __init__(self, config: dict[str, object], features: int):
        super().__init__()
        self.backbone = BACKBONES.build(config).requires_grad_(True)
        self.fc = nn.Linear(self.backbone.num_features, features, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.backbone(images))
