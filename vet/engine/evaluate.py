"""Scores of a dataset by a model, over any number of processes, and the metrics of the scores."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from vet.config import Dataloader, Evaluation, Views
from vet.core.augmented import averaged
from vet.core.loss import kinds_of
from vet.core.model import ImageClassifier
from vet.core.modes import in_eval
from vet.core.multitask import MultiTaskClassifier
from vet.core.objective import Objective, build_objective
from vet.datasets.base import ImageData, by_task, objective_of, of_task
from vet.engine.feed.door import Features, Transforms, in_order, load
from vet.errors import UserError
from vet.metrics.nearest import votes
from vet.registry import METRICS


def measure(
    model: ImageClassifier | MultiTaskClassifier,
    dataset: object,
    views: Transforms,
    accelerator: Accelerator,
    evaluation: Evaluation,
    found: dict[str | None, tuple[np.ndarray, np.ndarray]] | None = None,
    features: Features | None = None,
) -> dict[str, float]:
    """The metrics of a dataset, by name. For several tasks: 'task/metric', and the mean of each metric over
    tasks.

    found: a dict that gets the scores and the targets of all images, by task.
    features: the features that a cache keeps of the images. Only for one task.
    """
    loader = evaluation.dataloader
    of_tasks = {}
    for task, task_data in by_task(dataset).items():
        scores, labels = score(
            model.for_task(task),
            task_data,
            views[task],
            accelerator,
            loader.batch_size_per_gpu,
            loader.workers_per_gpu,
            features,
            tta=evaluation.tta,
        )
        objective = model.for_task(task).objective
        names = evaluation.metrics or objective.metrics
        of_tasks[task] = compute_metrics(names, scores, labels, objective)
        if found is not None:
            found[task] = scores, labels
    if None in of_tasks:
        return of_tasks[None]
    first, *others = of_tasks.values()
    # a metric that gives numbers by class may have other names in other tasks
    common = set(first).intersection(*others)
    means = {}
    for name in first:
        if name in common:
            means[name] = sum(results[name] for results in of_tasks.values()) / len(of_tasks)
    return means | {
        f'{task}/{name}': value for task, results in of_tasks.items() for name, value in results.items()
    }


@torch.no_grad()
def score(
    model: ImageClassifier,
    dataset: ImageData,
    transform: Callable[[object], torch.Tensor],
    accelerator: Accelerator,
    batch_size: int,
    workers: int,
    features: Features | None = None,
    then: Callable[[torch.Tensor], torch.Tensor] | None = None,
    tta: Views | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The objective's scores (N, …) and the targets (N, …) of all N images, in order.

    Each image counts once, for any N.
    then: a function of the model's outputs (B, …), whose results replace the scores. None: the objective's
        scores.
    tta: the views of each image. None: one view.

    UserError for a dataset without images.
    """
    rank = accelerator.process_index
    world = accelerator.num_processes
    length = len(dataset)
    if not length:
        raise UserError(f'the dataset {type(dataset).__name__} is empty: there is nothing to evaluate.')
    mine = range(rank, length, world)
    objective = objective_of(dataset) or build_objective(None, dataset.classes)
    certain = objective.certain if then is None else np.asarray
    keys = in_order(mine, 1 if objective.dense else batch_size)  # whole images may have any sizes
    net: Callable[..., torch.Tensor]
    if features:
        net = features.net
        batches = features.batches(keys, accelerator.device)
    else:
        net = model.of_any_size if objective.dense else model
        batches = load(dataset, {None: transform}, 0, keys, workers, accelerator.device)
    outputs: list[tuple[torch.Tensor, torch.Tensor]] = []
    with in_eval(model):
        for batch in batches:
            with accelerator.autocast():
                found = averaged(
                    partial(_outputs, net, batch.route), batch.images, tta or Views(), objective
                ).float()
            kept = objective.tally(found, batch.labels) if then is None else (then(found), batch.labels)
            outputs.append(kept)
    if world == 1:
        scores, labels = (torch.cat(parts) for parts in zip(*outputs))
        return scores.cpu().numpy(), certain(labels.cpu().numpy())
    share = -(-length // world)  # all processes gather equal shares; the padding is cut off below
    # a process without images learns the shapes from the others
    shapes = gather_object([[(tensor.shape[1:], tensor.dtype) for tensor in outputs[0]]] if outputs else [])[
        0
    ]
    padded = [torch.zeros(share, *shape, dtype=dtype, device=accelerator.device) for shape, dtype in shapes]
    for whole, parts in zip(padded, zip(*outputs)):
        whole[: len(mine)] = torch.cat(parts)
    gathered = [
        accelerator.gather(tensor)
        .view(world, share, *tensor.shape[1:])
        .transpose(0, 1)
        .flatten(0, 1)[:length]
        for tensor in padded
    ]
    return gathered[0].cpu().numpy(), certain(gathered[1].cpu().numpy())


def _outputs(net: Callable[..., torch.Tensor], route: tuple, images: torch.Tensor) -> torch.Tensor:
    return net(images, *route)


def features_of(
    model: ImageClassifier,
    dataset: ImageData,
    transform: Callable[[object], torch.Tensor],
    accelerator: Accelerator,
    loader: Dataloader,
    features: Features | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The features (N, C) that the model's head gets, and the targets (N, …), of all N images, in order."""
    seen: list[torch.Tensor] = []

    def listen(head: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(args[0].float())

    with model.head.register_forward_pre_hook(listen):
        return score(
            model,
            dataset,
            transform,
            accelerator,
            loader.batch_size_per_gpu,
            loader.workers_per_gpu,
            features,
            then=lambda _: seen.pop(),
        )


def knn_accuracy(
    model: ImageClassifier | MultiTaskClassifier,
    gallery: object,
    dataset: object,
    views: Transforms,
    accelerator: Accelerator,
    evaluation: Evaluation,
    k: int,
) -> dict[str, float]:
    """The share of images whose class has the most votes of the k nearest images of the gallery.

    Images are compared by the features that the head gets, or by the vectors of an objective that embeds. See
    `votes`. {'knn': …}, or for several tasks {'task/knn': …} and the mean.
    UserError if an image has not one class.
    """
    found = {}
    for task, task_data in by_task(dataset).items():
        single = model.for_task(task)
        loader = evaluation.dataloader
        objective = single.objective
        made_up = objective.certain(objective.examples()[1])
        if made_up.ndim != 1 or not np.issubdtype(made_up.dtype, np.integer):
            raise UserError(
                'the nearest images vote for one class, but a target of the objective '
                f'{objective.given["type"]!r} is {objective.targets}. Leave --knn out.'
            )
        sizes = loader.batch_size_per_gpu, loader.workers_per_gpu
        parts = []
        for images in (of_task(gallery, task), task_data):
            vectors, targets = (
                score(single, images, views[task], accelerator, *sizes)
                if objective.embeds
                else features_of(single, images, views[task], accelerator, loader)
            )
            parts.append((vectors, objective.certain(targets)))
        (kept, known), (asked, labels) = parts
        decided = votes(asked, kept, known, len(objective.names), k).argmax(1)
        found[task] = float((decided == labels).mean())
    if None in found:
        return dict(knn=found[None])
    mean = sum(found.values()) / len(found)
    return dict(knn=mean) | {f'{task}/knn': value for task, value in found.items()}


def compute_metrics(
    names: Iterable[str], scores: np.ndarray, labels: np.ndarray, objective: Objective | None = None
) -> dict[str, float]:
    """Each metric by its name. ModelScope's 'vision-efficient-tuning-metric' has the name 'accuracy'.

    A metric that has an argument `objective` gets the objective, with its class names and thresholds. A
    metric gives a number, or numbers by name, which get the names 'metric.name'. UserError for any other
    result, and for a metric that fails.
    """
    results: dict[str, float] = {}
    scores, labels = _read_only(scores), _read_only(labels)  # the next metric gets them too
    for name in names:
        title = metric_name(name)
        try:
            metric = METRICS.find(name)
            result = metric(scores, labels, **(dict(objective=objective) if _takes_objective(metric) else {}))
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
    """The name of a metric in results. vet's own metrics have one name, which their other names stand for."""
    if isinstance(name, str) and name not in METRICS.index.plugins:
        return name
    return getattr(METRICS.find(name), '__name__', str(name))


def _read_only(values: np.ndarray) -> np.ndarray:
    view = values.view()
    view.flags.writeable = False
    return view


def _takes_objective(metric: Callable[..., object]) -> bool:
    try:
        return 'objective' in inspect.signature(metric).parameters
    except (TypeError, ValueError):  # a callable without a signature
        return False


def is_lower_better(names: Iterable[str]) -> bool:
    """Whether less is better of the first metric, which chooses the best epoch."""
    return bool(getattr(METRICS.find(next(iter(names))), 'lower_is_better', False))


def refuse_unfit_metrics(names: Iterable[str], objective: Objective, taken: Iterable[str]) -> None:
    """UserError if a metric is not for the objective, fails on made-up scores, or has a name in `taken`."""
    for name in names:
        _refuse_other_targets(METRICS.find(name), name, objective)
    found = compute_metrics(names, *objective.examples(), objective)
    if not found:
        raise UserError(
            'evaluation.metrics names no metric, so that nothing is evaluated; give one, such as "accuracy".'
        )
    if clash := sorted(set(found) & set(taken)):
        raise UserError(
            f'a metric has the name {clash[0]!r}, which another entry of the summary has; give the function '
            'another name.'
        )


def _refuse_other_targets(metric: object, name: str, objective: Objective) -> None:
    kinds = kinds_of(metric)
    if kinds is None or objective.targets in kinds:
        return
    fitting = [
        other for other in METRICS.names() if objective.targets in (kinds_of(METRICS.find(other)) or ())
    ]
    raise UserError(
        f'the metric {name!r} is for targets that are {" or ".join(kinds)}, but a target of the objective '
        f'{objective.given["type"]!r} is {objective.targets}. Set evaluation.metrics to some of: '
        f'{", ".join(fitting)}.'
    )
