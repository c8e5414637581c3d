"""Judge: measures the model of a run on a split. Lets objectives choose numbers on the validation images.

trainer.py makes the judge. run.py asks the judge before, during and after the epochs.
"""

from collections.abc import Callable, Iterable
from itertools import chain

import numpy as np
import torch
from accelerate import Accelerator

from vet.config import Settings
from vet.core.augmented import refuse_unfit_tta
from vet.core.multitask import Classifier
from vet.datasets.base import by_task, of_task
from vet.engine.evaluate import features_of, is_lower_better, measure, refuse_unfit_metrics, score
from vet.engine.feed.door import Feed, Transforms
from vet.errors import UserError
from vet.files import JsonObject
from vet.log import say

Scored = dict[str | None, tuple[np.ndarray, np.ndarray]]  # by task: the scores and the targets of a split


class Judge:
    """Looks at the images of `feed` through `views`, the transform of evaluation of each task."""

    def __init__(
        self, model: Classifier, settings: Settings, accelerator: Accelerator, feed: Feed, views: Transforms
    ):
        self.model = model
        self.settings = settings
        self.accelerator = accelerator
        self.feed = feed
        self.views = views

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics, as the config says, else as the objectives of the tasks say."""
        usual = (classifier.objective.metrics for classifier in self.model.tasks.values())
        return list(self.settings.evaluation.metrics or dict.fromkeys(chain(*usual)))

    def refuse_unfit(self, taken: Iterable[str]) -> None:
        """UserError if a setting of the evaluation does not fit. taken: names that no metric may have."""
        evaluation = self.settings.evaluation
        for classifier in self.model.tasks.values():
            refuse_unfit_tta(evaluation.tta, classifier.objective)
            refuse_unfit_metrics(
                evaluation.metrics or classifier.objective.metrics, classifier.objective, taken
            )
        if evaluation.calibrate:
            self._refuse_unfit_calibration()

    def _refuse_unfit_calibration(self) -> None:
        """UserError if no temperature can be chosen."""
        for classifier in self.model.tasks.values():
            if not classifier.objective.calibrates:
                raise UserError(
                    'evaluation.calibrate is True, but the objective '
                    f'{classifier.objective.given["type"]!r} has no temperature. Set '
                    'evaluation.calibrate to False.'
                )
        if not self.feed.has('val'):
            raise UserError(
                'evaluation.calibrate is True, but there are no validation images to choose a temperature '
                'on. Give dataset.val; or set evaluation.select to "best", which holds out training images.'
            )

    def measure(self, split: str, scored: Scored | None = None) -> dict[str, float]:
        """The metrics of the present model on a split. scored: gets the scores and the targets."""
        if not self.feed.has(split):
            raise UserError(
                f'there is no {split!r} split to evaluate on; give dataset.{split} in the config.'
            )
        return measure(
            self.model,
            *self.feed.source(split, self.views),
            self.accelerator,
            self.settings.evaluation,
            scored,
            self.feed.features(split, self.views),
        )

    def is_better(self, result: float, best: float | None) -> bool:
        """Whether `result` of the first metric is better than `best`. None: there is no best result."""
        if best is None:
            return True
        return result < best if is_lower_better(self.metrics) else result > best

    def choose(self) -> JsonObject:
        """Lets each objective choose its numbers, such as thresholds, on the validation images.

        Returns the entry 'calibration' of the summary, if evaluation.calibrate says so.
        """
        calibration: JsonObject = {}
        for task, classifier in self.model.tasks.items():
            if self.settings.evaluation.calibrate:
                calibration[str(task)] = classifier.objective.calibrate(
                    *self._validated(task, lambda found: found)
                )
                if self.accelerator.is_main_process:
                    say(_told_calibration(task, calibration[str(task)]))
            if classifier.objective.chooses and self.feed.has('val'):
                classifier.objective.choose(*self._validated(task))
        if not calibration:
            return {}
        return dict(calibration=calibration.get('None', calibration))

    def _validated(
        self, task: str | None, then: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The scores and the targets of a task's validation images. then: see `score`."""
        dataset, views = self.feed.source('val', self.views)
        loader = self.settings.evaluation.dataloader
        return score(
            self.model.for_task(task),
            of_task(dataset, task),
            views[task],
            self.accelerator,
            loader.batch_size_per_gpu,
            loader.workers_per_gpu,
            self.feed.features('val', self.views),
            then,
            self.settings.evaluation.tta,
        )

    def training_features(self, task: str | None) -> tuple[np.ndarray, np.ndarray]:
        """The features (N, C) of the training images, as evaluation sees them, and the targets (N, …)."""
        dataset, views, kept = self.feed.training_once(self.views)
        task_data = by_task(dataset)[task]
        loader = self.settings.evaluation.dataloader
        return features_of(self.model.for_task(task), task_data, views[task], self.accelerator, loader, kept)


def _told_calibration(task: str | None, found: JsonObject) -> str:
    """The chosen temperature, and the errors of the scores before and after, in words."""
    errors = [
        f'{title} {before:.4f} -> {after:.4f}'
        for title, (before, after) in (('likelihood loss', found['nll']), ('calibration error', found['ece']))
    ]
    of_task = f' of {task}' if task else ''
    return f'temperature{of_task} {found["temperature"]:.4f}: validation {", ".join(errors)}'
