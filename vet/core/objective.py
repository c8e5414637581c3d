"""The contract of an objective: the question that a model answers about an image.

An objective says, in one place, all that depends on the kind of target:

| question | answered by |
|---|---|
| What is a target, and which targets are wrong? | `check`, and `targets`, the name of the kind |
| Which targets are mixtures, and what do metrics take? | `is_mixture`, `mixed_examples`; `certain` |
| How many outputs has the head? | `num_outputs` |
| Which numbers does an objective need from the training targets? | `fit`, `counts`, `group` |
| How do the head's outputs become the model's outputs? | `finish` |
| What does the loss compare? | `for_loss`; the default `loss` |
| What does a head in closed form estimate? | `coded` |
| How do outputs become scores, and scores decisions? | `scores`, `decide`; `mean`, of several views |
| What does evaluation keep of a batch? | `tally` |
| Which metrics are the default? | `metrics` |
| What does vet print before the training? | `told` |
| What is chosen on the validation images? | `choose`; `calibrate`, if evaluation.calibrate says so |
| What does `pipeline` return? | `answers` |
| How does an answer stand in a table, and in a CSV? | `rows`; `columns` and `flat` |
| What does a report of a run say of a target, and of a wrong answer? | `words`, `sureness`, `wrongness` |
| When is an answer unsure? | `doubt` |
| What does a model folder hold? | `entry`: the config entry that builds the objective again |

engine, hub and pipelines use an objective only through this contract. They know no objective by name. A loss
or a metric that names kinds in its attribute `targets` is used only for objectives of these kinds.

A target has a plain form (see vet/targets.py): a number, a tuple of numbers, or a mask, which is a tensor.
"""

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from vet.errors import UserError, shown
from vet.registry import OBJECTIVES, Entry
from vet.targets import Plain

Answer = dict[str, Any]  # what `pipeline` returns of an image; its keys are those of the objective
State = dict[str, Any]  # values of JSON, by the name of an argument
UNSURE = 'unsure'  # the label of an image whose scores are all below the threshold of `doubt`
NEEDED = ('targets', 'loss', 'metrics', 'check', 'watch', 'answers', 'examples')  # of a subclass
DEFAULT = dict(type='SingleLabel')  # for a config and a dataset that name no objective


class Objective(nn.Module):
    """The base class of objectives.

    names: the names of the outputs, which are the dataset's `classes`: of classes, or of numbers.
    An objective has no parameters that train. The parameters that train belong to the head.
    """

    targets: ClassVar[str]
    """The kind of target, in words: 'one class', 'a set of classes', 'numbers'."""
    loss: ClassVar[Entry]
    """The config entry of the loss that is used if train.loss is None."""
    metrics: ClassVar[tuple[str, ...]]
    """The metrics that are used if evaluation.metrics is None. The first chooses the best epoch."""
    mixes: ClassVar[bool] = False
    """Whether a mixture of two targets is a target, so that mixup and cutmix have a meaning."""
    dense: ClassVar[bool] = False
    """Whether a target has a value for each pixel. Training then transforms image and target together.
    Evaluation and `pipeline` see the whole image, which may have any size."""
    overlap: float = 0.5
    """For dense targets: the share of a window that the next window sees too, see core/windows.py."""
    view: ClassVar[Sequence[Entry] | None] = None
    """The entries that are used if evaluation.transform is None. None: the evaluation crop."""
    embeds: ClassVar[bool] = False
    """Whether the scores are vectors of length 1, which are compared with one another."""
    ranks: ClassVar[bool] = False
    """Whether an answer ranks classes, so that only its first label is what the model says."""
    watched: ClassVar[str] = 'accuracy'
    """The name of the number that the log shows beside the loss. See `watch`."""
    found: ClassVar[tuple[str, ...]] = ()
    """The arguments that vet finds from training or validation images. A new training finds them again."""
    chosen: ClassVar[tuple[str, ...]] = ()
    """Those of `found` that fit one trained model alone, because validation images chose them."""
    chooses: bool = False
    """Whether `choose` chooses anything on the validation images."""
    calibrates: ClassVar[bool] = False
    """Whether `calibrate` changes scores so that they say how often answers are right."""
    told: str = ''
    """A line that vet prints before the training. Empty: no line."""
    about: ClassVar[str] = 'an image classifier'
    """What a model of this objective is, for the model card."""
    hub_task: ClassVar[str | None] = 'image-classification'
    """The name of the task on a hub. None: a hub has no name for the task."""

    given: Entry  # the config entry; `build_objective` sets the entry

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names = list(names)
        self.given = dict(type=type(self).__name__)

    @property
    def num_outputs(self) -> int:
        """The number of outputs of the head."""
        return len(self.names)

    def check(self, target: object, name: Callable[[], str]) -> Plain:
        """The plain form of a target. UserError for a wrong target. name: words for the item."""
        raise NotImplementedError(f'{type(self).__name__} must write check(target, name)')

    def group(self, target: object) -> int:
        """The number of the target's group. Images that are held out are drawn evenly from each group."""
        return 0

    def counts(self, targets: Sequence[object]) -> list[int]:
        """The number of images of each class, for class weights. UserError if there are no classes."""
        raise UserError(
            f'the objective {self.given["type"]!r} counts no images of a class, so that vet cannot choose '
            'weights of classes. Give a list of weights, or leave the weights out.'
        )

    def fit(self, targets: Callable[[], Sequence[object]]) -> None:
        """Takes what the objective needs from the plain targets of training. targets(): reads all targets."""

    def finish(self, outputs: torch.Tensor) -> torch.Tensor:
        """The head's outputs (B, …) -> the model's outputs (B, …), such as numbers in the user's units."""
        return outputs

    def for_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's outputs and the targets of a batch, as a loss compares them."""
        return outputs, targets

    def coded(self, targets: torch.Tensor) -> torch.Tensor:
        """Targets (N, …) -> numbers (N, K) that a linear map of features can estimate, for FittedHead."""
        raise NotImplementedError(f'{type(self).__name__} must write coded(targets)')

    def watch(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(B,): a number for each image. The log shows the mean by the name `watched`."""
        raise NotImplementedError(f'{type(self).__name__} must write watch(outputs, targets)')

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """The model's outputs (B, …) -> scores (B, …), which metrics take."""
        return outputs

    def tally(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The arrays of a batch that evaluation keeps for metrics: scores (B, …) and targets (B, …)."""
        return self.scores(outputs), targets

    def mean(self, outputs: torch.Tensor) -> torch.Tensor:
        """Outputs (V, B, …) of V views -> outputs (B, …) whose scores are the means of the views' scores."""
        raise UserError(
            f'the objective {self.given["type"]!r} has no mean over several views. Leave evaluation.tta out.'
        )

    def fitted(self, outputs: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Outputs (B, …) for images of `size` (H, W). Dense outputs get this size."""
        return outputs

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Scores (N, …) -> the targets that the model says."""
        return scores

    def choose(self, scores: np.ndarray, targets: np.ndarray) -> None:
        """Chooses numbers of the objective, such as thresholds, on the validation images."""

    def certain(self, targets: np.ndarray) -> np.ndarray:
        """Targets (N, …) of a dataset as metrics take them. Here: unchanged."""
        return targets

    def is_mixture(self, target: object) -> bool:
        """Whether a target, in its plain form, is a mixture of targets, which not every loss takes."""
        return False

    def calibrate(self, outputs: np.ndarray, targets: np.ndarray) -> State:
        """Chooses how outputs become scores, from the outputs (N, …) of the validation images.

        Returns what was chosen, and errors as [before, after]. Called only if `calibrates`.
        """
        raise NotImplementedError(f'{type(self).__name__} must write calibrate(outputs, targets)')

    def answers(self, outputs: torch.Tensor, topk: int | None, usual: int) -> list[Answer]:
        """The answers that `pipeline` returns, one for each image. outputs: of the model, (B, …).

        topk: the largest number of labels of an image. None: `usual`, if each class has a score.
        """
        raise NotImplementedError(f'{type(self).__name__} must write answers(outputs, topk, usual)')

    def plain(self, answer: Answer) -> Answer:
        """An answer for JSON."""
        return answer

    def rows(self, answer: Answer) -> list[tuple[str, str]]:
        """An answer as rows of a table: a text, and a number as text. Without labels: all values."""
        if 'labels' not in answer:
            return [(name, str(value)) for name, value in answer.items()]
        return [(label, f'{score:.4f}') for label, score in zip(answer['labels'], answer['scores'])]

    @property
    def columns(self) -> list[str]:
        """The names of the values that `flat` gives."""
        return ['label', 'score']

    def flat(self, answer: Answer) -> Answer:
        """An answer as one row of a CSV, by `columns`. '|' stands between several labels and scores."""
        if 'labels' not in answer:
            return dict(label='|'.join(f'{name}={value}' for name, value in answer.items()), score='')
        return dict(
            label='|'.join(answer['labels']), score='|'.join(f'{score:.6g}' for score in answer['scores'])
        )

    def refuse_threshold(self) -> None:
        """UserError if `doubt` has no meaning for this model."""
        if UNSURE in self.names:
            raise UserError(
                f'the model has a class {UNSURE!r}, so that a threshold would mix two answers. Leave the '
                'threshold out.'
            )

    def doubt(self, answer: Answer, threshold: float) -> Answer:
        """The answer. If the best score is below the threshold: the label UNSURE with the best score."""
        if not answer.get('scores') or answer['scores'][0] >= threshold:
            return answer
        return dict(scores=answer['scores'][:1], labels=[UNSURE])

    def evaluation_transform(self, given: Sequence[Entry] | None) -> Sequence[Entry] | None:
        """The entries of evaluation.transform, or `view` if they are None."""
        return self.view if given is None else given

    def words(self, target: object) -> str:
        """A target, as an array of one image, in words."""
        return str(target)

    def sureness(self, scores: np.ndarray, decided: object) -> list[float]:
        """The scores (K,) of what the model says about one image. Empty if there are no such scores."""
        return []

    def wrongness(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """(N,): how wrong the answer for each image is. 0: exactly right."""
        wrong = self.decide(scores) != targets
        return wrong.reshape(len(wrong), -1).any(1).astype(float)

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Made-up scores and targets of a few images. vet tries metrics on them before a run."""
        raise NotImplementedError(f'{type(self).__name__} must write examples()')

    def example_outputs(self) -> np.ndarray:
        """Made-up outputs of the model for the images of `examples`, for losses. Here: the scores."""
        return self.examples()[0]

    def mixed_examples(self) -> np.ndarray:
        """The targets of `examples` as mixtures, as mixup and cutmix make them."""
        return self.examples()[1]

    def examples_for_loss(self) -> tuple[np.ndarray, np.ndarray]:
        """Made-up outputs and targets of a few images. vet tries losses on them before a run."""
        return self.example_outputs(), self.examples()[1]

    def state(self) -> State:
        """{argument: value} of the arguments `found`, as plain values. Without a value that was not found."""
        return {}

    def entry(self) -> State:
        """The config entry that builds this objective again, with all that was found."""
        return {**self.given, **self.state()}


def refuse_counts(least: int = 1, **given: object) -> None:
    """UserError for an argument that is no whole number of at least `least`."""
    for name, value in given.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
            raise UserError(f'{name} is {shown(value)}; {name} must be at least {least}, as a whole number.')


def refuse_share(name: str, value: object) -> None:
    """UserError for an argument that is no number in 0..1."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) <= 1:
        raise UserError(f'{name} is {shown(value)}; {name} must be a number from 0 to 1.')


def build_objective(entry: Mapping[str, object] | None, names: Sequence[str]) -> Objective:
    """The objective of a config entry. None: DEFAULT.

    names: the names of the outputs. UserError if the plugin is no Objective.
    """
    given = dict(DEFAULT if entry is None else entry)
    if 'names' in given:
        raise UserError(
            f'model.objective.names is {given["names"]!r}; leave it out: the dataset gives the names.'
        )
    objective = OBJECTIVES.build(given, names=list(names))
    if not isinstance(objective, Objective):
        raise UserError(
            f'the objective {given["type"]!r} is a {type(objective).__name__}; an objective is a subclass of '
            'vet.core.objective.Objective.'
        )
    lacking = [
        name
        for name in NEEDED
        if not hasattr(objective, name) or getattr(type(objective), name, None) is getattr(Objective, name, 0)
    ]
    if lacking:
        raise UserError(
            f'the objective {given["type"]!r} lacks {", ".join(lacking)}. Write them in the class, as '
            'vet.core.objective.Objective says. Or base the class on an objective of vet, such as '
            'SingleLabel.'
        )
    objective.given = given
    return objective
