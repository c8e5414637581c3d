"""Writes the outcome of a run into its work folder: curves, predictions for the test images, a report.

run.py calls `write_outcome` at the end of a training, through door.py.
"""

import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vet.config import Settings
from vet.core.model import ImageClassifier
from vet.core.multitask import Classifier
from vet.core.objective import Objective
from vet.datasets.base import ImageData, class_counts, of_task, sources_of
from vet.engine.feed.door import Transforms, View, opened
from vet.engine.saving.log import draw_curves, read_log
from vet.errors import DataError
from vet.explain.heat import grad_cam
from vet.explain.overlay import drawn_over
from vet.files import JsonObject, write_file
from vet.log import warn

if TYPE_CHECKING:  # the report is imported when it is written
    from vet.report.answered import Answered

Scored = Mapping[str | None, tuple[np.ndarray, np.ndarray]]


def write_outcome(
    folder: Path,
    model: Classifier,
    data: Mapping[str, object],
    settings: Settings,
    summary: JsonObject,
    scored: Scored,
    metrics: Iterable[str],
    views: Transforms,
) -> None:
    """predictions.npz, and, if evaluation.report says so, curves.png, predictions.csv and report.html.

    data: the datasets, by split. scored: by task, the scores and the targets of the test images.
    metrics: the names of the test metrics in `summary`. views: the transform of evaluation of each task.
    """
    if None in scored:
        _write_answers(folder, model.for_task(None).objective, *scored[None])
    if settings.evaluation.report:
        try:
            draw_curves(folder, folder / 'curves.png')
        except DataError as error:  # a run without curves is better than no run
            warn(f'no curves are drawn: {error}')
        try:
            _write_report(folder, _answered(model, data, scored, views), summary, metrics, settings)
        except Exception as error:  # plugins of a user may raise any error
            warn(f'no report is written, but the run is whole: {type(error).__name__}: {error}')


def _write_answers(folder: Path, objective: Objective, scores: np.ndarray, targets: np.ndarray) -> None:
    """predictions.npz: the images' 'labels', and the labels 'given' by the model."""
    data = io.BytesIO()
    np.savez(data, labels=targets, given=objective.decide(scores))
    write_file(folder / 'predictions.npz', data.getvalue())


def _answered(
    model: Classifier, data: Mapping[str, object], scored: Scored, views: Transforms
) -> list['Answered']:
    """For each task: the answers for the test images, with the facts that the report shows."""
    from vet.report.answered import Answered

    answered = []
    for task, (scores, targets) in scored.items():
        test, train = (of_task(data[split], task) for split in ('test', 'train'))
        objective = model.for_task(task).objective
        counts = class_counts(train)
        images = _images_of(test)
        looked = _looked(model.for_task(task), images, views[task])
        answered.append(Answered(objective, scores, targets, sources_of(test), images, counts, task, looked))
    return answered


def _write_report(
    folder: Path, answered: list['Answered'], summary: JsonObject, metrics: Iterable[str], settings: Settings
) -> None:
    """predictions.csv and report.html."""
    from vet.report.answered import predictions_csv
    from vet.report.run import run_report

    if answered:
        write_file(folder / 'predictions.csv', predictions_csv(answered))
    page = run_report(summary, list(metrics), settings.to_dict(), read_log(folder), answered)
    write_file(folder / 'report.html', page)


def _looked(
    model: ImageClassifier, images: Callable[[int], object], view: View
) -> Callable[[int], object] | None:
    """A function that draws Grad-CAM over a test image. None if the answer is not one output."""
    if not model.objective.ranks:
        return None

    def draw(number: int) -> object:
        seen = view(opened(images(number), model.backbone.preprocessing.gray_range))
        device = next(model.parameters()).device
        return drawn_over(seen, grad_cam(model, seen[None].to(device))[0], view)

    return draw


def _images_of(dataset: ImageData) -> Callable[[int], object]:
    return lambda number: dataset[number][0]
