"""Border prompts: learned pixels around the image, VPT's form for convolutional networks.

Jia et al. 2022, arXiv:2203.12119
"""

from typing import Annotated

import torch
from annotated_types import Interval
from torch import nn

from vet.core.modes import in_eval
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UserError
from vet.registry import TUNERS

# B images of H x W pixels, p pixels of border


@TUNERS.register_module()
class BorderPrompt(Tuner):
    """f([P; x; P]): a border of `pad` learned pixels around the normalised image.

    (3, H, W) -> (3, H + 2 p, W + 2 p)
    These are the paper's prompts for ConvNeXt and ResNet ("pad" in the authors' code). The pixels start
    uniform in [0, 1], normalised as the images are. The network must take images of any size. Other networks,
    such as a ViT with fixed positions, are refused.
    pad: p, the width of the border in pixels.
    unit: the parameters are pixels before the normalisation, which each forward computes.
    Against the released code: output and start. The code trains pixels in [0, 1] and normalises them in each
        forward, so that its gradients are 1 / std times those here; unit=True does the same.
    Parameters: 3 (2 p (W + 2 p) + 2 p H); 224 x 224 images, p = 5: 13,740.
    """

    identity_at_start = False

    def __init__(self, pad: Annotated[int, Interval(ge=1, le=4096)] = 5, unit: bool = False):
        super().__init__('backbone')
        if pad < 1:
            raise UserError(f'pad is {pad}; it must be at least 1.')
        self.pad = pad
        self.unit = unit

    def tune(self, site: Site) -> None:
        assert self.backbone is not None
        self._try(site)
        images = self.backbone.preprocessing
        self.before(site, Border(site.in_shape, self.pad, images.mean, images.std, self.unit))

    def _try(self, site: Site) -> None:
        """Refuses a network that gives another number of features for the larger images, or that fails."""
        channels, height, width = site.in_shape
        images = next(site.module.parameters()).new_zeros(
            1, channels, height + 2 * self.pad, width + 2 * self.pad
        )
        needs = f'a network that takes images padded to {tuple(images.shape[1:])}'
        try:
            with torch.no_grad(), in_eval(site.module):
                given = site.module(images)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise refuse(self, site, f'{needs} ({error})') from error
        if given.shape[1:] != site.out_shape:
            raise refuse(
                self,
                site,
                f'{needs} to the same {tuple(site.out_shape)} features, not {tuple(given.shape[1:])}',
            )


class Border(nn.Module):
    """(B, 3, H, W) -> (B, 3, H + 2 p, W + 2 p).

    The first p rows of `rows`, and the first p columns of `columns`, stand before the image. The others stand
    behind. unit: `rows` and `columns` are not normalised yet.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        image_shape: torch.Size,
        pad: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        unit: bool = False,
    ):
        super().__init__()
        self.unit = unit
        self.image_shape = image_shape
        channels, height, width = image_shape
        shift, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        self.register_buffer('shift', shift, persistent=False)
        self.register_buffer('scale', scale, persistent=False)
        rows, columns = torch.rand(channels, 2 * pad, width + 2 * pad), torch.rand(channels, height, 2 * pad)
        self.rows = nn.Parameter(rows if unit else self.normalised(rows))
        self.columns = nn.Parameter(columns if unit else self.normalised(columns))

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels in 0..1 -> as the network takes them."""
        return (pixels - self.shift) / self.scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[1:] != self.image_shape:
            raise UserError(
                f'the border was made for images of {tuple(self.image_shape)}; given: '
                f'{tuple(images.shape[1:])}. Give images of the first shape, or set '
                'model.backbone.preprocessing.size.'
            )
        rows = self.normalised(self.rows) if self.unit else self.rows
        columns = self.normalised(self.columns) if self.unit else self.columns
        left, right = columns.to(images.dtype).expand(len(images), -1, -1, -1).chunk(2, -1)
        top, bottom = rows.to(images.dtype).expand(len(images), -1, -1, -1).chunk(2, -2)
        return torch.cat([top, torch.cat([left, images, right], -1), bottom], -2)
