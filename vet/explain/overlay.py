"""Heat as colours over the image that the network has seen."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from vet.transforms.torchvision import normalisation

SHARE = 0.5  # of the colours in the picture


def drawn_over(view: torch.Tensor, heat: torch.Tensor, transform: Callable) -> Image.Image:
    """A normalised image (3, H, W) with heat (h, w), 0..1, over it: dark blue is cold, yellow is hot.

    transform: the transform that made the image, which says how the image was normalised.
    """
    from matplotlib import colormaps

    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in normalisation(transform))
    photo = (view.cpu() * std + mean).clamp(0, 1)
    whole = F.interpolate(heat[None, None].cpu().float(), size=photo.shape[-2:], mode='bilinear')[0, 0]
    colours = torch.from_numpy(colormaps['plasma'](whole.numpy())[..., :3]).permute(2, 0, 1).float()
    return to_pil_image((1 - SHARE) * photo + SHARE * colours)
