"""Answered: what a model said about each test image, as an evaluation has found it."""

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vet.core.objective import Objective
from vet.escapes import cell

COLUMNS = ('file', 'label', 'answer', 'score')


@dataclass(frozen=True)
class Answered:
    """scores (N, …) and targets (N, …): of N test images, as the objective's metrics take them.

    sources: the file of each image, or () if the dataset names no files.
    image: gives a test image by its number, as the dataset gives it.
    train_counts: the number of training images of each class, or () if it is not known.
    looked: gives a picture of where the network looked at a test image. None: no such pictures.
    """

    objective: Objective
    scores: np.ndarray
    targets: np.ndarray
    sources: Sequence[object]
    image: Callable[[int], object]
    train_counts: Sequence[int] = ()
    task: str | None = None
    looked: Callable[[int], object] | None = None

    @property
    def decided(self) -> np.ndarray:
        """(N, …) what the model says, in the form of targets."""
        return self.objective.decide(self.scores)

    def file(self, number: int) -> str:
        """The file of an image, or words for an image without a file."""
        source = self.sources[number] if number < len(self.sources) else None
        return os.fspath(source) if isinstance(source, str | os.PathLike) else f'image {number}'

    def rows(self) -> Iterable[tuple[str, str, str, str]]:
        """File, true label, answer and score of each test image."""
        objective = self.objective
        for number, (scores, target, decided) in enumerate(zip(self.scores, self.targets, self.decided)):
            score = '|'.join(f'{value:.6g}' for value in objective.sureness(scores, decided))
            yield self.file(number), objective.words(target), objective.words(decided), score


def predictions_csv(answered: Iterable[Answered]) -> bytes:
    """A CSV with a row for each test image. For several tasks, the first column names the task."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    parts = list(answered)
    has_tasks = any(answers.task is not None for answers in parts)
    writer.writerow(['task', *COLUMNS] if has_tasks else COLUMNS)
    for answers in parts:
        for row in answers.rows():
            writer.writerow(map(cell, [str(answers.task), *row] if has_tasks else row))
    return text.getvalue().encode('utf-8', 'backslashreplace')
