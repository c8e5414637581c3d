"""Metrics of masks, from counts of pixels over all images.

Each metric is a function: scores (N, K, 2), the pixels of each class that the model says, and the right
pixels among these; labels (N, K), the pixels of each class in the mask -> a number in 0..1, or {class:
number}.
"""

import numpy as np

from vet.metrics.kind import Asked, of_targets
from vet.registry import METRICS

KIND = 'a mask'


@METRICS.register_module(name=['mIoU', 'mean_iou'])
@of_targets(KIND)
def mIoU(scores: np.ndarray, labels: np.ndarray) -> float:  # noqa: N802 - the name in papers
    """The mean over classes of intersection over union. Classes without any pixel are left out."""
    return float(np.nanmean(_iou(scores, labels)))


@METRICS.register_module()
@of_targets(KIND)
def pixel_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of the labelled pixels that are right."""
    return float(scores[..., 1].sum() / labels.sum())


@METRICS.register_module()
@of_targets(KIND)
def iou_per_class(scores: np.ndarray, labels: np.ndarray, objective: Asked) -> dict[str, float]:
    """Intersection over union of each class. Classes without any pixel are left out."""
    named = zip(objective.names, _iou(scores, labels).tolist())
    return {name: value for name, value in named if not np.isnan(value)}


def _iou(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(K,): intersection over union over all images. NaN for a class without any pixel."""
    said_K, right_K = np.moveaxis(scores.sum(0), -1, 0).astype(float)
    union_K = said_K + labels.sum(0) - right_K
    return np.divide(right_K, union_K, out=np.full_like(right_K, np.nan), where=union_K > 0)
