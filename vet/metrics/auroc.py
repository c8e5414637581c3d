"""The area under the ROC curve, computed by scikit-learn."""

import numpy as np
from sklearn.metrics import roc_auc_score

from vet.metrics.kind import of_targets
from vet.registry import METRICS


@METRICS.register_module()
@of_targets(('one class', 'a set of classes'))
def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """The area under the ROC curve of each class against the rest: the mean over classes, in 0..1.

    A class that all images have, or that no image has, has no curve and is left out. NaN if no class has a
    curve.
    scores (N, K). labels (N,), or (N, K) of 0 and 1.
    """
    has_NK = labels > 0 if labels.ndim == 2 else labels[:, None] == np.arange(scores.shape[1])
    curved_K = has_NK.any(0) & ~has_NK.all(0)
    if not curved_K.any():
        return float('nan')
    areas = [roc_auc_score(has_NK[:, k], scores[:, k]) for k in np.flatnonzero(curved_K)]
    return float(np.mean(areas))
