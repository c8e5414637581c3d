"""Losses of the pixels of masks (B, H, W). Pixels of IGNORED are left out.

Each loss gives one number for each image.
"""

import torch
import torch.nn.functional as F

from vet.targets import IGNORED

LEAST = 1e-6  # of a sum of pixels


def cross_entropy(
    outputs: torch.Tensor, masks: torch.Tensor, weight: torch.Tensor | None, label_smoothing: float
) -> torch.Tensor:
    """The mean over the labelled pixels of -log softmax(outputs)_y."""
    losses_BHW = F.cross_entropy(
        outputs, masks, weight, ignore_index=IGNORED, reduction='none', label_smoothing=label_smoothing
    )
    return losses_BHW.flatten(1).sum(1) / (masks != IGNORED).flatten(1).sum(1).clamp(min=1)


def dice(outputs: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """1 - mean over the classes of the mask of 2 sum(p y) / (sum(p) + sum(y)), p = softmax(outputs)."""
    is_labelled = (masks != IGNORED)[:, None]
    true_BKHW = F.one_hot(masks.masked_fill(masks == IGNORED, 0), outputs.shape[1]).movedim(-1, 1)
    true_BKHW, said_BKHW = true_BKHW * is_labelled, outputs.softmax(1) * is_labelled
    both_BK, said_BK, true_BK = (
        values.flatten(2).sum(2) for values in (said_BKHW * true_BKHW, said_BKHW, true_BKHW)
    )
    dice_BK = 2 * both_BK / (said_BK + true_BK).clamp(min=LEAST)
    is_there_BK = true_BK > 0
    return 1 - (dice_BK * is_there_BK).sum(1) / is_there_BK.sum(1).clamp(min=1)
