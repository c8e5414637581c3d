"""The contract of a head that vet computes from features before the first step, without gradients."""

from typing import ClassVar

import torch
from torch import nn

from vet.core.objective import Objective
from vet.errors import UserError


class FittedHead(nn.Module):
    """The base class of heads in closed form. A trainer calls `fit` once, before the first step."""

    targets: ClassVar[tuple[str, ...]]
    """The kinds of targets that the head can be computed from. See Objective.targets."""

    def fit(self, features_NC: torch.Tensor, coded_NK: torch.Tensor) -> None:
        """Computes the head from the features of all training images, and from `Objective.coded`."""
        raise NotImplementedError(f'{type(self).__name__} must write fit(features_NC, coded_NK)')


def refuse_unfit_head(head: nn.Module, objective: Objective) -> None:
    """UserError if a head in closed form cannot be computed from the objective's targets."""
    if isinstance(head, FittedHead) and objective.targets not in head.targets:
        raise UserError(
            f'the head {type(head).__name__!r} is computed from targets that are '
            f'{" or ".join(head.targets)}, but a target of the objective {objective.given["type"]!r} is '
            f'{objective.targets}. Choose another model.head, such as dict(type="Linear").'
        )
