"""Assembles a classifier from a backbone, and from the entries of tuners, head and objective, as a config or
a model folder has them.
"""

from collections.abc import Mapping
from typing import Any

from vet.core.backbone import Backbone
from vet.core.head import refuse_unfit_head
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
    if 'in_features' in head:
        raise UserError(
            f'model.head.in_features is {head["in_features"]!r}; leave it out: the backbone gives the number '
            'of features.'
        )
    attached = [TUNERS.build(tuner) for tuner in tuners]
    made = HEADS.build({**head, 'num_classes': objective.num_outputs}, in_features=backbone.num_features)
    refuse_unfit_head(made, objective)
    return ImageClassifier(backbone, attached, made, classes, objective)


def build_classifiers(
    parts: Mapping[Any, tuple[Any, ...]], tuners: list[dict[str, Any]], shared: str = '.*'
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
