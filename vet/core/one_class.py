"""The base of objectives whose target is one of K classes."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vet.core.objective import Objective
from vet.errors import UserError
from vet.targets import as_label

EXAMPLES = 500  # classes of made-up images


class OneClass(Objective):
    """A target is a class number 0 … K-1. Scores are (N, K), one for each class."""

    def check(self, target: object, name: Callable[[], str]) -> int | tuple[float, ...]:
        return as_label(target, len(self.names), name)

    def fit(self, targets: Callable[[], Sequence[Any]]) -> None:
        """UserError for a single class: every answer would be right. The targets are not read."""
        if len(self.names) < 2:
            raise UserError(
                f'the dataset has one class, {self.names[0]!r}. A model learns to tell classes apart: add '
                'images of another class.'
            )

    def group(self, target: Any) -> int:
        return target

    def counts(self, targets: Sequence[object]) -> list[int]:
        found = Counter(map(self.group, targets))
        return [found[label] for label in range(len(self.names))]

    def words(self, target: Any) -> str:
        return self.names[int(target)]

    def sureness(self, scores: np.ndarray, decided: Any) -> list[float]:
        return [float(scores[decided])]

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        labels = self.example_labels()
        classes = len(self.names)
        return np.random.default_rng(0).dirichlet(np.ones(classes), len(labels)), labels

    def example_labels(self) -> np.ndarray:
        """Each of the first EXAMPLES classes twice. More images of many classes would fill the memory."""
        return np.tile(np.arange(min(len(self.names), EXAMPLES)), 2)
