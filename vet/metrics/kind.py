"""The declarations of a metric: its targets, whether less is better, and whether it takes the objective."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np

Metric = TypeVar('Metric', bound=Callable)


class Asked(Protocol):
    """The part of an objective that metrics need (vet/core/objective.py)."""

    names: Sequence[str]

    def decide(self, scores: np.ndarray) -> np.ndarray: ...


def of_targets(kind: str | tuple[str, ...], lower_is_better: bool = False) -> Callable[[Metric], Metric]:
    """Declares the kinds of targets that a metric takes, as `Objective.targets` names them.

    A metric without a declaration is tried on every objective, and more is better.
    """

    def declared(metric: Metric) -> Metric:
        for name, value in dict(targets=kind, lower_is_better=lower_is_better).items():
            setattr(metric, name, value)
        return metric

    return declared
