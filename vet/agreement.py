"""Compares the answers of an exported graph with the answers of its model, and measures both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from vet.config import Evaluation
from vet.core.model import ImageClassifier
from vet.datasets.base import ImageData
from vet.engine.evaluate import compute_metrics, score
from vet.hub.formats.int8 import GraphClassifier
from vet.pipelines import Classifier


@dataclass(frozen=True)
class Agreement:
    """images: how many were seen. same: the share of images with the same answer. metrics: {name: (of the
    model, of the graph)}.
    """

    images: int
    same: float
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f'the same answer as before for {self.same:.1%} of {self.images:,} images']
        lines += [
            f'{name} {before:.4f} before, {after:.4f} now' for name, (before, after) in self.metrics.items()
        ]
        return ', '.join(lines)


def on_dataset(
    model: ImageClassifier,
    graph: GraphClassifier,
    dataset: ImageData,
    view: Callable[[Any], torch.Tensor],
    accelerator: Accelerator,
    evaluation: Evaluation,
) -> Agreement:
    """Compares on all images of a dataset. `view` prepares each image once."""
    loader = evaluation.dataloader
    objective = model.objective
    sizes = loader.batch_size_per_gpu, loader.workers_per_gpu
    names = evaluation.metrics or objective.metrics
    found = []
    judged: list[Any] = [model, graph]
    for one in judged:
        scores, targets = score(one, dataset, view, accelerator, *sizes)
        found.append((objective.decide(scores), compute_metrics(names, scores, targets, objective)))
    (ours, before), (theirs, after) = found
    return Agreement(len(ours), _same(ours, theirs), {name: (before[name], after[name]) for name in before})


@torch.inference_mode()
def on_images(
    classify: Classifier, graph: GraphClassifier, images: Sequence[str], task: str | None = None
) -> Agreement:
    """Compares on images without targets."""
    model = classify.model.for_task(task)
    decided: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for number, image in enumerate(images):
        seen = classify.seen(image, task, number)[None]
        for answers, network in zip(decided, (model, graph)):
            answers.append(model.objective.decide(model.objective.scores(network(seen)).numpy()))
    ours, theirs = (np.concatenate(answers) for answers in decided)
    return Agreement(len(images), _same(ours, theirs))


def _same(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float((ours == theirs).reshape(len(ours), -1).all(1).mean())
