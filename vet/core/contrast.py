"""The gradient of whole weights on training images, for methods that choose by it before step 0.

The loss is the supervised contrastive loss of the features, which needs no head.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F

from vet.core.first_images import first_images
from vet.core.modes import in_eval
from vet.core.reweight import Reweight
from vet.core.tuner import Tuner
from vet.errors import UserError

# N views of images, C channels


def weight_gradients(
    tuner: Tuner, edits: Sequence[Reweight], batches: Iterable, images: int
) -> list[torch.Tensor]:
    """The sum of the gradients of the batches, for the weight of each edit. [] if there is no batch.

    A gradient has the layout in which a delta sees the weight. A batch holds each image once, so the second
    view of an image is its mirror image. Needs the memory of full tuning with twice the batch.
    batches: images (B, 3, H, W) and labels (B,); read until `images` images were seen.
    """
    assert tuner.backbone is not None, 'attach first'
    weights = [edit.host.get_parameter(edit.weight_name) for edit in edits]
    sums = [torch.zeros_like(weight) for weight in weights]
    seen = 0
    frozen = [weight for weight in weights if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with in_eval(tuner.backbone):
            for views, labels in first_images(batches, images):
                if labels.ndim != 1:
                    raise UserError(
                        f'{type(tuner).__name__} compares images by their class, but the targets of this '
                        'dataset are several numbers for each image. Choose another tuner, such as plain '
                        'LoRA.'
                    )
                loss = contrastive_loss(tuner.backbone(torch.cat([views, views.flip(-1)])), labels.repeat(2))
                for total, gradient in zip(sums, torch.autograd.grad(loss, weights)):
                    total += gradient
                seen += len(views)
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    if not seen:
        return []
    if torch.distributed.is_initialized():  # each process has seen its own images
        for total in sums:
            torch.distributed.all_reduce(total)
    if not any(total.any() for total in sums):
        raise UserError(
            f'{type(tuner).__name__} compares the images of a batch, but in {seen} images there was '
            'nothing to compare. Give two images or more, and set train.dataloader.batch_size_per_gpu to 2 '
            'or more.'
        )
    refuse_infinite(sums, tuner, 'the gradients of a weight')
    return [edit.output_first(total) for edit, total in zip(edits, sums)]


def refuse_infinite(found: list[torch.Tensor], tuner: Tuner, what: str) -> list[torch.Tensor]:
    """`found`. UserError for numbers that are not finite."""
    if all(tensor.isfinite().all() for tensor in found):
        return found
    raise UserError(
        f'{type(tuner).__name__} cannot start from the training images: {what} are not finite for some '
        'images. Check the weights of the backbone, or choose a start that reads no images.'
    )


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
