"""GPS: each neuron tunes only its few input connections with the largest gradients.

Zhang et al. 2023, arXiv:2312.10136
"""

from collections.abc import Iterable
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import nn

from vet.allowed import Counts, Places
from vet.core.delta import Delta
from vet.core.modes import in_eval
from vet.core.reweight import Reweight
from vet.core.site import Site
from vet.core.tuner import Tuner, refuse
from vet.errors import UserError
from vet.registry import TUNERS

# N views of images, C channels, k connections


@TUNERS.register_module()
class GPS(Tuner):
    """W_ij + v_ij for the k inputs j of each output i with the largest |dL / dW_ij|, and b + f.

    All other weights stay frozen. L is the supervised contrastive loss of the features, which needs no head.
    `prepare` chooses the connections on the frozen network. The choice is saved. Before `prepare`, the
    connections are the k largest |W_ij| of each output. v and f start at zero, so the start is the identity.
    An output of a convolution has in / groups kH kW inputs.
    k: one value, a list by depth (0 skips a block; then at='weight'), or a dict from module path patterns to
        values.
    bias: whether the biases b train too, as in the authors' code. The authors' code takes every weight except
        the norms'. vet takes the weights of the stem and the blocks.
    images: from how many training images the choice is made (the authors: all). A batch holds each image
        once, so the second view of an image is its mirror image. `prepare` needs the memory of full tuning
        with twice the batch.
    Against the released code: masks, output and gradients. The code also trains layer scales (ConvNeXt's
        gamma), and chooses connections in every weight, also in those between the stages.
    Parameters per site: k out, and out of a bias; ViT-B/16, k = 1: 83,712, and 83,712 of biases.
    """

    def __init__(
        self,
        k: Counts = 1,
        bias: bool = True,
        images: Annotated[int, Interval(ge=1, le=10**9)] = 1000,
        at: Places = ('stem', 'weight'),
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
        assert self.backbone is not None, 'attach first'
        edits = [edit for edit in self._edits if isinstance(edit, Reweight)]
        weights = [edit.host.get_parameter(edit.weight_name) for edit in edits]
        sums, seen = [torch.zeros_like(weight) for weight in weights], 0
        frozen = [weight for weight in weights if not weight.requires_grad]
        try:
            for weight in frozen:
                weight.requires_grad_(True)
            with in_eval(self.backbone):
                for images, labels in batches:
                    if labels.ndim != 1:
                        raise UserError(
                            f'{type(self).__name__} compares images by their class, but the targets of this '
                            'dataset are several numbers for each image. Choose another tuner, such as LoRA.'
                        )
                    loss = contrastive_loss(
                        self.backbone(torch.cat([images, images.flip(-1)])), labels.repeat(2)
                    )
                    for total, gradient in zip(sums, torch.autograd.grad(loss, weights)):
                        total += gradient
                    seen += len(images)
                    if seen >= self.images:
                        break
        finally:
            for weight in frozen:
                weight.requires_grad_(False)
        if not seen:
            return
        if torch.distributed.is_initialized():  # each process has seen its own images
            for total in sums:
                torch.distributed.all_reduce(total)
        if not any(total.any() for total in sums):
            raise UserError(
                f'{type(self).__name__} compares the images of a batch, but in {seen} images there was '
                'nothing to compare; set train.dataloader.batch_size_per_gpu to 2 or more.'
            )
        for edit, total in zip(edits, sums):
            index = edit.delta.get_buffer('index')
            index.copy_(largest(edit.output_first(total), index.shape[1]))


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


def contrastive_loss(
    features_NC: torch.Tensor, labels_N: torch.Tensor, temperature: float = 0.07
) -> torch.Tensor:
    """The supervised contrastive loss.   Khosla et al. 2020, arXiv:2004.11362, eq. 2

    -mean over i, and over the other images p of i's label, of log softmax_{a != i}(z_i z_a / temperature)_p,
    with z = features / |features|. Every label must occur at least twice.
    """
    z_NC = F.normalize(features_NC)
    self_NN = torch.eye(len(z_NC), dtype=torch.bool, device=z_NC.device)
    log_p_NN = (z_NC @ z_NC.T / temperature).masked_fill(self_NN, -torch.inf).log_softmax(-1)
    positive_NN = (labels_N == labels_N[:, None]) & ~self_NN
    return -(log_p_NN.masked_fill(~positive_NN, 0).sum(1) / positive_NN.sum(1)).mean()
