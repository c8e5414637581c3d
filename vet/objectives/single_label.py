"""The objective of most datasets: an image belongs to one of K classes."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Interval

from vet.core.objective import Answer, State
from vet.core.one_class import OneClass
from vet.core.permits import NOTHING, number, permits
from vet.registry import OBJECTIVES
from vet.targets import as_class


@OBJECTIVES.register_module()
@permits(temperature=NOTHING | number(0.01, 100))
class SingleLabel(OneClass):
    """One class for each image. The scores are softmax(outputs / temperature), and sum to 1.

    A target is a class number 0 … K-1; or the shares of the K classes, as floats that sum to 1. Metrics take
    the class with the largest share. The head has K outputs. `pipeline` returns {'scores': [...], 'labels':
    [...]}, best first.
    temperature: None: 1. With evaluation.calibrate, vet chooses the temperature on the validation images. A
        model folder holds the temperature. The best class of an image stays the same.
    """

    targets = 'one class'
    loss = dict(type='CrossEntropyLoss')
    metrics = ('accuracy',)
    mixes = True
    ranks = True
    found = chosen = ('temperature',)
    calibrates = True

    def __init__(
        self, names: Sequence[str], temperature: Annotated[float, Interval(ge=0.01, le=100)] | None = None
    ):
        super().__init__(names)
        self.temperature = temperature

    def check(self, target: object, name: Callable[[], str]) -> int | tuple[float, ...]:
        return as_class(target, self.names, name)

    def group(self, target: Any) -> int:
        """The class. For shares of classes: the class with the largest share."""
        return int(np.argmax(target)) if isinstance(target, tuple) else target

    def coded(self, targets: torch.Tensor) -> torch.Tensor:
        """1 for the class of an image, and 0 for the other classes. Shares of classes stay."""
        return targets.float() if targets.ndim == 2 else F.one_hot(targets, len(self.names)).float()

    def watch(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        labels = targets.argmax(1) if targets.ndim == 2 else targets
        return (outputs.argmax(1) == labels).float()

    def certain(self, targets: np.ndarray) -> np.ndarray:
        """The class with the largest share."""
        return targets.argmax(1) if targets.ndim == 2 else targets

    def is_mixture(self, target: object) -> bool:
        return isinstance(target, tuple)

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        return (outputs if self.temperature is None else outputs / self.temperature).softmax(1)

    def mean(self, outputs: torch.Tensor) -> torch.Tensor:
        temperature = self.temperature or 1.0
        return temperature * (outputs / temperature).log_softmax(-1).logsumexp(0)

    def decide(self, scores: np.ndarray) -> np.ndarray:
        return scores.argmax(1)

    def calibrate(self, outputs: np.ndarray, targets: np.ndarray) -> State:
        """Temperature scaling."""
        from vet.objectives.temperature import chosen_temperature  # here: scipy is imported in half a second

        self.temperature, errors = chosen_temperature(outputs, targets)
        return dict(temperature=self.temperature, **errors)

    def answers(self, outputs: torch.Tensor, topk: int | None, usual: int) -> list[Answer]:
        best = self.scores(outputs.float()).topk(min(usual if topk is None else topk, len(self.names)))
        found: list[Answer] = []
        for scores, indices in zip(best.values.tolist(), best.indices.tolist()):
            found.append(dict(scores=scores, labels=[self.names[i] for i in indices]))
        return found

    def wrongness(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """1 - the score of the true class."""
        return 1 - scores[np.arange(len(targets)), targets]

    def mixed_examples(self) -> np.ndarray:
        scores, labels = self.examples()
        return (np.eye(len(self.names))[labels] + scores) / 2

    def state(self) -> State:
        return {} if self.temperature is None else dict(temperature=self.temperature)
