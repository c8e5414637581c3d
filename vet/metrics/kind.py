"""Declarations of a metric: for which targets it is, and whether less is better."""

from collections.abc import Callable
from typing import Any


def of_targets(kind: str | tuple[str, ...], lower_is_better: bool = False) -> Callable[[Any], Any]:
    """Declares the kinds of targets that a metric takes, as `Objective.targets` names them.

    A metric without a declaration is tried on every objective, and more is better.
    """

    def declared(metric: Any) -> Any:
        metric.targets, metric.lower_is_better = kind, lower_is_better
        return metric

    return declared
