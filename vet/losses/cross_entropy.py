"""Cross-entropy of softmax(outputs), by torch: for images of one class, and for masks."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from vet.allowed import Dropout, Positive
from vet.errors import UserError
from vet.losses.pixels import cross_entropy
from vet.losses.weights import ClassWeights, Counts, balanced, counted, refuse_other_length
from vet.registry import LOSSES


@LOSSES.register_module(name=['CrossEntropyLoss', 'CrossEntropy', 'SoftTargetCrossEntropy'])
class CrossEntropyLoss(nn.Module):
    """w_y (-log softmax(outputs)_y), by `torch.nn.functional.cross_entropy`.

    label_smoothing: the share of the target that is spread evenly over all classes.
    class_weight: w, a list of K weights, of which one at least is above 0; or 'balanced': N / (K n_k) for a
        class of n_k among N training images. None: all weights are 1. The loss of a step is the mean over
        its images.
    kind: the objective's kind of target. The loss of a mask is the mean over the labelled pixels.
    """

    targets: ClassVar[str | tuple[str, ...]] = ('one class', 'a mask')

    def __init__(
        self,
        label_smoothing: Dropout = 0.0,
        class_weight: ClassWeights = None,
        counts: Counts = None,
        kind: str = 'one class',
    ):
        super().__init__()
        self.label_smoothing = label_smoothing
        self.kind = kind
        weights = None
        if class_weight is not None:
            if not any(class_weight):
                raise UserError(
                    'train.loss.class_weight has only zeros, so that nothing can be learned. Give a class a '
                    'weight above 0.'
                )
            weights = (
                balanced(*counted(counts, 'class_weight="balanced"'))
                if class_weight == 'balanced'
                else torch.tensor(class_weight, dtype=torch.float32)
            )
        self.weight: torch.Tensor | None
        self.register_buffer('weight', weights)

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        refuse_other_length(self.weight, outputs, 'class_weight')
        if self.kind == 'a mask':
            return cross_entropy(outputs, targets, self.weight, self.label_smoothing)
        return F.cross_entropy(
            outputs, targets, self.weight, reduction='none', label_smoothing=self.label_smoothing
        )


@LOSSES.register_module()
class LabelSmoothingCrossEntropy(CrossEntropyLoss):
    """CrossEntropyLoss with label smoothing. timm's formula is that of torch.

    smoothing: the share of the target that is spread evenly over all classes.
    """

    targets = 'one class'

    def __init__(self, smoothing: Dropout = 0.1):
        super().__init__(label_smoothing=smoothing)


@LOSSES.register_module()
class MultiMarginLoss(nn.Module):
    """mean_k max(0, margin - f_y + f_k)^p over the other classes k, by torch. Outputs far apart count 0.

    p: 1 or 2.
    margin: the least distance between the output of the target and the other outputs that counts 0.
    """

    targets = 'one class'

    def __init__(self, p: Literal[1, 2] = 1, margin: Positive = 1.0):
        super().__init__()
        self.p = p
        self.margin = margin

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.multi_margin_loss(outputs, targets, self.p, self.margin, reduction='none')
