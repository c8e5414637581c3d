"""Scores of a dataset by a model, over any number of processes, and the metrics of the scores."""

import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from vet.config import Evaluation
from vet.core.model import ImageClassifier
from vet.core.modes import in_eval
from vet.core.multitask import MultiTaskClassifier
from vet.datasets.base import ImageData
from vet.engine.feed.door import Features, Transforms, load
from vet.errors import UserError
from vet.files import write_file
from vet.registry import METRICS


def measure(
    model: ImageClassifier | MultiTaskClassifier,
    dataset: Any,
    views: Transforms,
    accelerator: Accelerator,
    evaluation: Evaluation,
    answers: Path | None = None,
    features: Features | None = None,
) -> dict[str, float]:
    """The metrics of a dataset, by name. For several tasks: 'task/metric', and the mean of each metric over
    tasks.

    answers: an .npz file to write, with the images' 'labels' and the labels 'given' by the model. Only for
        one task.
    features: the features that a cache keeps of the images. Only for one task.
    """
    loader, by_task = evaluation.dataloader, {}
    for task, part in getattr(dataset, 'tasks', {None: dataset}).items():
        scores, labels = score(
            model.for_task(task),
            part,
            views[task],
            accelerator,
            loader.batch_size_per_gpu,
            loader.workers_per_gpu,
            features,
        )
        by_task[task] = compute_metrics(evaluation.metrics, scores, labels)
        if answers and task is None and accelerator.is_main_process:
            data = io.BytesIO()
            np.savez(data, labels=labels, given=scores.argmax(1))
            write_file(answers, data.getvalue())
    if None in by_task:
        return by_task[None]
    first, *others = by_task.values()
    # a metric that gives numbers by class may have other names in other tasks
    common = [name for name in first if all(name in results for results in others)]
    means = {name: sum(results[name] for results in by_task.values()) / len(by_task) for name in common}
    return means | {
        f'{task}/{name}': value for task, results in by_task.items() for name, value in results.items()
    }


@torch.no_grad()
def score(
    model: nn.Module,
    dataset: ImageData,
    transform: Callable[[object], torch.Tensor],
    accelerator: Accelerator,
    batch_size: int,
    workers: int,
    features: Features | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Softmax scores (N, K) and labels (N,) of all N images, in order. Each image counts once, for any N.

    UserError for a dataset without images.
    """
    rank = accelerator.process_index
    world = accelerator.num_processes
    length = len(dataset)
    if not length:
        raise UserError(f'the dataset {type(dataset).__name__} is empty: there is nothing to evaluate.')
    mine = range(rank, length, world)
    keys = [
        [(0, i, 1) for i in mine[start : start + batch_size]] for start in range(0, len(mine), batch_size)
    ]
    net, batches = (
        (features.net, features.batches(keys, accelerator.device))
        if features
        else (model, load(dataset, {None: transform}, 0, keys, workers, accelerator.device))
    )
    outputs = []
    with in_eval(model):
        for batch in batches:
            with accelerator.autocast():
                outputs.append((net(batch.images, *batch.route).float().softmax(1), batch.labels))
    if world == 1:
        scores, labels = (torch.cat(parts) for parts in zip(*outputs))
        return scores.cpu().numpy(), labels.cpu().numpy()
    share = -(-length // world)  # all processes gather equal shares; the padding is cut off below
    classes = _agree(accelerator, outputs[0][0].shape[1] if outputs else 0)
    scores = torch.zeros(share, classes, device=accelerator.device)
    labels = torch.zeros(share, dtype=torch.long, device=accelerator.device)
    if outputs:
        scores[: len(mine)], labels[: len(mine)] = (torch.cat(parts) for parts in zip(*outputs))
    gathered = [
        accelerator.gather(tensor)
        .view(world, share, *tensor.shape[1:])
        .transpose(0, 1)
        .flatten(0, 1)[:length]
        for tensor in (scores, labels)
    ]
    return gathered[0].cpu().numpy(), gathered[1].cpu().numpy()


def best_classes(logits: torch.Tensor, classes: list[str], topk: int) -> list[dict[str, list]]:
    """logits (B, K) -> {'scores': [...], 'labels': [...]} for each image: the `topk` softmax scores, best
    first.
    """
    best = logits.float().softmax(1).topk(min(topk, len(classes)))
    return [
        dict(scores=scores, labels=[classes[i] for i in indices])
        for scores, indices in zip(best.values.tolist(), best.indices.tolist())
    ]


def compute_metrics(names: Iterable[str], scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Each metric by its name. ModelScope's 'vision-efficient-tuning-metric' has the name 'accuracy'.

    A metric gives a number, or numbers by name, which get the names 'metric.name'. UserError for any other
    result, and for a metric that fails.
    """
    results: dict[str, float] = {}
    for name in names:
        title = metric_name(name)
        try:
            result = METRICS.find(name)(scores, labels)
            named = (
                {f'{title}.{key}': value for key, value in result.items()}
                if isinstance(result, Mapping)
                else {title: result}
            )
            results |= {key: float(value) for key, value in named.items()}
        except UserError:
            raise
        except Exception as error:  # a user's own metric may raise any error
            raise UserError(
                f'the metric {title!r} fails on scores {scores.shape} and labels {labels.shape}: '
                f'{type(error).__name__}: {error}. A metric takes these two arrays and gives a number, or a '
                'dict of numbers.'
            ) from error
    return results


def metric_name(name: str) -> str:
    """The name of a metric in results."""
    return getattr(METRICS.find(name), '__name__', str(name))


def refuse_unfit_metrics(names: Iterable[str], classes: int, taken: Iterable[str]) -> None:
    """UserError if a metric fails on made-up scores of this number of classes, or has a name in `taken`."""
    labels = np.arange(2 * classes) % classes
    found = compute_metrics(names, np.random.default_rng(0).dirichlet(np.ones(classes), len(labels)), labels)
    if not found:
        raise UserError(
            'evaluation.metrics names no metric, so that nothing is evaluated; give one, such as "accuracy".'
        )
    if clash := sorted(set(found) & set(taken)):
        raise UserError(
            f'a metric has the name {clash[0]!r}, which another entry of the summary has; give the function '
            'another name.'
        )


def _agree(accelerator: Accelerator, number: int) -> int:
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())
