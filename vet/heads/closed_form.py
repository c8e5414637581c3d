"""Linear heads in closed form: computed in one pass over the features, without gradients.

With train.max_epochs=0, such a head is the whole training. Otherwise the head is the start of the training.
"""

import warnings
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval
from scipy.linalg import LinAlgError, LinAlgWarning, solve
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import Ridge as RidgeRegression
from sklearn.linear_model import RidgeCV
from torch import nn

from vet.allowed import Classes, Share
from vet.core.head import FittedHead
from vet.core.permits import NOTHING, number, permits, whole
from vet.errors import UserError
from vet.registry import HEADS

ALPHAS = np.logspace(-3, 6, 19)  # that Ridge tries
MOST = 1_000_000


class ClosedForm(FittedHead):
    """outputs = W f + b: features (B, C) -> (B, K), in float32. W and b are zero before `fit`."""

    def __init__(self, in_features: int, num_classes: int):
        super().__init__()
        self.fc = nn.Linear(in_features, num_classes)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self.fc(features.float())

    @torch.no_grad()
    def _set(self, weight_KC: np.ndarray, bias_K: np.ndarray) -> None:
        """UserError for numbers that are not finite."""
        if not (np.isfinite(weight_KC).all() and np.isfinite(bias_K).all()):
            raise UserError(
                f'the head {HEADS.called(self)!r} cannot be computed from these features: its numbers are '
                'not finite. Choose another head.'
            )
        self.fc.weight.copy_(torch.from_numpy(weight_KC))
        self.fc.bias.copy_(torch.from_numpy(bias_K))


@HEADS.register_module()
@permits(num_classes=whole(1, MOST), shrinkage=NOTHING | number(0, 1))
class LDA(ClosedForm):
    """Linear discriminant analysis: W_k = S^-1 m_k, b_k = log p_k - m_k^T S^-1 m_k / 2.

    Hastie, Tibshirani, Friedman 2009, section 4.3; shrinkage of Ledoit and Wolf 2004, as in scikit-learn

    m_k and p_k are the mean and the share of the images of class k. A class without images has the mean of
    all images, and counts as one image. S is the covariance within the classes, which shrinks towards a
    multiple of the identity: (1 - shrinkage) S + shrinkage (tr S / C) I.
    shrinkage: 0..1. None: by the formula of Ledoit and Wolf.
    Parameters: C K + K.
    """

    targets = ('one class',)

    def __init__(self, in_features: int, num_classes: Classes, shrinkage: Share | None = None):
        super().__init__(in_features, num_classes)
        self.shrinkage = shrinkage

    def fit(self, features_NC: torch.Tensor, coded_NK: torch.Tensor) -> None:
        x_NC, y_NK = features_NC.double().numpy(), coded_NK.double().numpy()
        count_K = y_NK.sum(0)
        mean_KC = (y_NK.T @ x_NC) / np.maximum(count_K, 1e-12)[:, None]
        mean_KC[count_K == 0] = x_NC.mean(0)
        within_CC = self._covariance(x_NC - y_NK @ mean_KC)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('error', LinAlgWarning)  # too near to a singular S
                weight_KC = solve(within_CC, mean_KC.T, assume_a='pos').T
        except (LinAlgError, LinAlgWarning) as error:
            raise UserError(
                f'the head LDA cannot be computed from {len(x_NC)} images with {x_NC.shape[1]} features, and '
                f'shrinkage={self.shrinkage}: the features of a class differ in too few directions. '
                f'{"Give" if self.shrinkage is None else "Leave shrinkage out, give"} more images of each '
                'class, or choose another head, such as Ridge.'
            ) from error
        prior_K = np.log(np.where(count_K > 0, count_K, 1) / len(x_NC))
        self._set(weight_KC, prior_K - (weight_KC * mean_KC).sum(1) / 2)

    def _covariance(self, rest_NC: np.ndarray) -> np.ndarray:
        """(C, C): the covariance within the classes.

        rest_NC: the features minus the mean of the class of each image.
        """
        if self.shrinkage is None:
            return ledoit_wolf(rest_NC, assume_centered=True)[0]
        plain_CC = rest_NC.T @ rest_NC / len(rest_NC)
        size = rest_NC.shape[1]
        return (1 - self.shrinkage) * plain_CC + self.shrinkage * np.trace(plain_CC) / size * np.eye(size)


@HEADS.register_module()
@permits(num_classes=whole(1, MOST), alpha=NOTHING | number(0, 1e12))
class Ridge(ClosedForm):
    """Ridge regression: the W and b with the least |W f + b - y|^2 + alpha |W|^2, by scikit-learn.

    Hoerl and Kennard 1970

    y is 1 for the class of an image and 0 for the others; 1 and -1 for a set of classes; or the standardised
    numbers.
    alpha: None: the best of 19 values from 1e-3 to 1e6 when each image in turn is left out.
    Parameters: C K + K.
    """

    targets = ('one class', 'a set of classes', 'numbers')

    def __init__(
        self,
        in_features: int,
        num_classes: Classes,
        alpha: Annotated[float, Interval(ge=0, le=1e12)] | None = None,
    ):
        super().__init__(in_features, num_classes)
        self.alpha = alpha

    def fit(self, features_NC: torch.Tensor, coded_NK: torch.Tensor) -> None:
        model = RidgeCV(ALPHAS) if self.alpha is None else RidgeRegression(self.alpha)
        model.fit(features_NC.double().numpy(), coded_NK.double().numpy())
        self._set(model.coef_, model.intercept_)
