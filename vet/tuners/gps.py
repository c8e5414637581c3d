"""GPS: each neuron tunes only its few input connections with the largest gradients.

Zhang et al. 2023, arXiv:2312.10136
"""

from collections.abc import Iterable

import torch
from torch import nn

from vet.allowed import Counts, Images, Places
from vet.core.contrast import weight_gradients
from vet.core.delta import Delta
from vet.core.reweight import Reweight
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UserError
from vet.registry import TUNERS

# k connections


@TUNERS.register_module()
class GPS(Tuner):
    """W_ij + v_ij for the k inputs j of each output i with the largest |dL / dW_ij|, and b + f.

    All other weights stay frozen. L is the supervised contrastive loss of the features, which needs no head.
    `prepare` chooses the connections on the frozen network. The choice is saved. Before `prepare`, the
    connections are the k largest |W_ij| of each output. v and f start at zero, so the start is the identity.
    An output of a convolution has in / groups kH kW inputs.
    k: how many inputs of each output train. One value, a list by depth (0 skips a block; then at='weight'),
        or a dict from module path patterns to values.
    bias: whether the biases b train too, as in the authors' code. The authors' code takes every weight except
        the norms'. vet takes the weights of the stem and the blocks.
    images: the number of training images from which GPS chooses. The authors take all. A batch holds each
        image once, so the second view of an image is its mirror image. `prepare` needs the memory of full
        tuning with twice the batch.
    Against the released code: masks, output and gradients. The code also trains layer scales (ConvNeXt's
        gamma), and chooses connections in every weight, also in those between the stages.
    Parameters per site: k out, and out of a bias; ViT-B/16, k = 1: 83,712, and 83,712 of biases.
    """

    def __init__(
        self, k: Counts = 1, bias: bool = True, images: Images = 1000, at: Places = ('stem', 'weight')
    ):
        super().__init__(at)
        if images < 1:
            raise UserError(f'images is {images}; it must be at least 1.')
        self.k = k
        self.bias = bias
        self.images = images

    def tune(self, site: Site) -> None:
        k = site.at_depth(self.k, 'k')
        if not k:
            return
        if site.weight.dim() < 2 or k > site.weight[0].numel():
            raise refuse(self, site, f'a weight matrix with {k} inputs or more to each output')
        self.reweight(site, Connections(site.weight, k, self.bias and site.bias is not None))

    def prepare(self, batches: Iterable) -> None:
        """Chooses the connections from batches of images (B, 3, H, W) and labels (B,).

        Every update is still zero.
        """
        edits = [edit for edit in self._edits if isinstance(edit, Reweight)]
        for edit, gradient in zip(edits, weight_gradients(self, edits, batches, self.images)):
            index = edit.delta.get_buffer('index')
            index.copy_(largest(gradient, index.shape[1]))


class Connections(Delta):
    """W + values at `index`, k inputs of each output, and bias + shift."""

    linear_in = ('values', 'shift')
    bound_to_weight = ('values',)

    def __init__(self, weight: torch.Tensor, k: int, shift: bool):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(len(weight), k))
        self.shift = nn.Parameter(torch.zeros(len(weight))) if shift else None
        self.index: torch.Tensor
        self.register_buffer('index', largest(weight, k).int())

    def forward(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """weight (out, in, …), bias (out,) or None -> the same shapes"""
        moved = (
            weight.flatten(1).scatter_add(1, self.index.long(), self.values.to(weight.dtype)).view_as(weight)
        )
        return moved, bias if self.shift is None or bias is None else bias + self.shift.to(bias.dtype)


def largest(tensor: torch.Tensor, k: int) -> torch.Tensor:
    """(out, …) -> (out, k): the places of the k largest absolute values of each row, in ascending order."""
    return tensor.detach().flatten(1).abs().topk(k).indices.sort().values
