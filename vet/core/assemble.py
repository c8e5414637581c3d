"""Assembles a classifier from a backbone, and from the entries of tuners, head and objective, as a config or
a model folder has them.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from vet.config import Plugin
from vet.core.backbone import Backbone
from vet.core.head import refuse_unfit_head
from vet.core.maps import MapHead, require_maps
from vet.core.model import ImageClassifier
from vet.core.multitask import MultiTaskClassifier, require_match, share_equal_weights
from vet.core.objective import Objective, build_objective
from vet.errors import UserError
from vet.registry import HEADS, TUNERS


def build_classifier(
    backbone: Backbone,
    tuners: list[dict[str, object]],
    head: dict[str, object],
    classes: list[str],
    objective: Objective | None = None,
) -> ImageClassifier:
    """Assembles a classifier: attaches the tuners in order, and builds a head with the objective's outputs.

    objective: None is one class for each image.
    """
    objective = objective or build_objective(None, classes)
    if given := [key for key in ('in_features', 'channels', 'names') if key in head]:
        raise UserError(
            f'model.head.{given[0]} is {head[given[0]]!r}; leave it out: the backbone gives the number of '
            'features, and the dataset gives the names.'
        )
    attached = [TUNERS.build(tuner) for tuner in tuners]
    made = _head(head, backbone, objective)
    refuse_unfit_head(made, str(head['type']), objective)
    return ImageClassifier(backbone, attached, made, classes, objective)


def _head(entry: dict[str, object], backbone: Backbone, objective: Objective) -> nn.Module:
    """The head of an entry. UserError if the head gives no mask for an objective of masks, or the reverse."""
    plugin = HEADS.find(entry['type'])
    given = {**entry, 'num_classes': objective.num_outputs}
    reads_maps = inspect.isclass(plugin) and issubclass(plugin, MapHead)
    if reads_maps != objective.dense:
        wanted = (
            'a head that reads maps, such as LinearMask or FPNMask' if objective.dense else 'another head'
        )
        raise UserError(
            f'model.head is {entry["type"]!r}, which answers for '
            f'{"each pixel" if reads_maps else "the image"}, but a target of the objective '
            f'{objective.given["type"]!r} is {objective.targets}. Set model.head to {wanted}.'
        )
    if not reads_maps:
        return HEADS.build(given, in_features=backbone.num_features, names=tuple(objective.names))
    maps = require_maps(backbone, str(entry['type']))
    stages = maps.stages(plugin.maps)
    head = HEADS.build(given, channels=tuple(maps.channels[stage] for stage in stages))
    head.stages = stages
    return head


def build_classifiers(
    parts: Mapping[Any, tuple[Any, ...]], tuners: list[Plugin], shared: str = '.*'
) -> ImageClassifier | MultiTaskClassifier:
    """The classifier of {task: (backbone, head entry, classes)} or {task: (…, classes, objective)}.

    A single task is {None: …}.
    shared: the pattern of the parameters that tasks share. UserError if the pattern matches nothing.
    """
    share_equal_weights([backbone for backbone, *_ in parts.values()])
    made = {
        task: build_classifier(backbone, tuners, head, classes, *objective)
        for task, (backbone, head, classes, *objective) in parts.items()
    }
    if None not in made:
        return MultiTaskClassifier({str(task): model for task, model in made.items()}, shared)
    require_match(shared, made[None])
    return made[None]
