"""The contracts of heads that are more than layers: computed from features, or begun from other knowledge."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from vet.core.loss import kinds_of
from vet.core.objective import Objective
from vet.errors import UserError
from vet.registry import HEADS


class FittedHead(nn.Module):
    """The base class of heads in closed form. A trainer calls `fit` once, before the first step."""

    targets: ClassVar[tuple[str, ...]]
    """The kinds of targets that the head can be computed from. See Objective.targets."""

    def fit(self, features_NC: torch.Tensor, coded_NK: torch.Tensor) -> None:
        """Computes the head from the features of all training images, and from `Objective.coded`."""
        raise NotImplementedError(f'{type(self).__name__} must write fit(features_NC, coded_NK)')

    def refuse_features(self, features_NC: torch.Tensor) -> None:
        """UserError for features that are not finite. A trainer calls this before `fit`."""
        if not features_NC.isfinite().all():
            raise UserError(
                'the backbone gives features that are not finite for some training images, so that the head '
                f'{HEADS.called(self)!r} cannot be computed. Check the weights.'
            )


class StartedHead(nn.Module):
    """The base class of heads that begin from knowledge of the classes, such as their texts."""

    only_at_start: ClassVar[tuple[str, ...]] = ()
    """The arguments that make the start. A model folder does not hold them: it holds the numbers."""

    def starts(self) -> dict[str, torch.Tensor]:
        """{name in state_dict: the value before the training}."""
        raise NotImplementedError(f'{type(self).__name__} must write starts()')

    def refuse_no_start(self) -> None:
        """UserError if the head knows nothing of a class. A trainer calls this before the first step."""


def saved_entry(head: nn.Module, entry: Mapping[str, object]) -> dict[str, Any]:
    """The entry of a head, as a model folder holds the entry."""
    dropped = head.only_at_start if isinstance(head, StartedHead) else ()
    return {key: value for key, value in entry.items() if key not in dropped}


def refuse_unfit_head(head: nn.Module, name: str, objective: Objective) -> None:
    """UserError if a head is not for the objective's targets.

    name: the type that the config gives. A head may name kinds of targets in its attribute `targets`, as
    losses do. An objective that embeds needs a head that names its kind.
    """
    kinds = kinds_of(head)
    if objective.targets in (kinds or ()) or (kinds is None and not objective.embeds):
        return
    fits = [name for name in HEADS.names() if objective.targets in (kinds_of(HEADS.find(name)) or ())]
    is_for = f'is for targets that are {" or ".join(kinds)}' if kinds else 'gives no vectors'
    raise UserError(
        f'the head {name!r} {is_for}, but a target of the objective '
        f'{objective.given["type"]!r} is {objective.targets}. Set model.head to another head, such as '
        f'dict(type={(fits if objective.embeds else [*fits, "Linear"])[-1]!r}).'
    )
