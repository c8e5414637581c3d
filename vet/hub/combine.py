"""Combines model folders with one backbone into a new model folder, without training.

soup: theta = sum_i w_i theta_i / sum_i w_i, of every trained tensor.   Wortsman et al. 2022, arXiv:2203.05482
sum: W = W0 + sum_i w_i (W_i - W0). The result has the tuners of every folder.   Ilharco et al. 2022,
    arXiv:2212.04089
"""

import math
import reprlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vet.core.assemble import build_classifier
from vet.core.backbone import Backbone
from vet.core.delta import declared
from vet.core.model import ImageClassifier
from vet.core.objective import DEFAULT, build_objective
from vet.core.reweight import Reweight
from vet.core.tuner import Tuner
from vet.errors import DataWarning, UnknownNameError, UserError
from vet.files import JsonObject
from vet.hub.model_folder import architecture, load_backbone, load_model, read_configuration, save_model
from vet.hub.names import find_folder
from vet.registry import OBJECTIVES

Tensors = dict[str, torch.Tensor]


def combine(
    folders: Sequence[str | Path],
    output: str | Path,
    weights: Sequence[float] | None = None,
    method: str = 'soup',
    head: int | None = None,
    backbone: str | Path | None = None,
    finish: Callable[[ImageClassifier], None] = lambda model: None,
) -> None:
    """Writes the model folder `output`, which loads like any model folder.

    folders: model folders or work folders, tuned from the same backbone weights.
    weights: one per folder. None: equal weights, which sum to 1 for a soup, and are 1 for a sum.
    method: 'soup' is for runs of one config: equal tuners and classes, weights of at least 0. A soup takes
        the mean of A and the mean of B, which does not give the mean of B A; for that mean, use 'sum' with
        weights 1 / n. 'sum' is for tuners whose update is linear in some tensors, as LoRA's update is linear
        in B. 'sum' scales these tensors. Its weights may be negative.
    head: the number of the folder, counted from 0, that gives the head and the classes. None: the weighted
        mean of the heads, whose classes must be equal. The same folder (None: the first) gives everything
        that is neither tuner nor head, such as the evaluation. Numbers that were chosen on validation images
        for each model alone, such as a temperature, are left out if the folders differ in them.
    backbone: where the backbone's weights are now, if not where the folders say.
    finish: changes the combined model before the model is saved.
    """
    if method not in METHODS:
        raise UnknownNameError('method of combining', method, METHODS)
    if Path(output).exists():
        raise UserError(f'{str(output)!r} exists already; give a new folder to write.')
    ingredients = [Ingredient(folder) for folder in folders]
    if not ingredients:
        raise UserError('there is nothing to combine; give one model folder or more.')
    weights = [1.0] * len(ingredients) if weights is None else list(weights)
    if len(weights) != len(ingredients) or not all(map(math.isfinite, [*weights, sum(weights)])):
        raise UserError(
            f'weights are {weights}; allowed: a number for each of the {len(ingredients)} folders. The '
            'numbers and their sum are finite.'
        )
    if head is not None and head not in range(len(ingredients)):
        raise UserError(
            f'head is {head}; allowed: 0 to {len(ingredients) - 1}, the number of the folder whose '
            'head is taken, or None.'
        )
    _require_equal(
        ingredients,
        'backbone weights',
        lambda ingredient: ingredient.backbone.get('sha256'),
        shown=lambda ingredient: (
            f'{ingredient.backbone.get("name", ingredient.backbone["type"])}, '
            f'sha256 {ingredient.backbone.get("sha256")}'
        ),
    )
    _require_equal(ingredients, 'backbone settings', lambda ingredient: ingredient.settings)
    shared = load_backbone(ingredients[0].backbone, backbone)
    for ingredient in ingredients:
        ingredient.load(shared)
    tuners, tensors = METHODS[method](ingredients, weights)
    main = ingredients[head or 0]
    tensors = tensors | _head(ingredients, weights, head)
    model: Any = load_model(main.path, shared)
    for tuner in model.tuners:
        tuner.detach()
    entry = main.configuration['model']['head']
    classes = main.configuration['classes']
    objective = build_objective(_common_objective(ingredients, main), classes)
    model = build_classifier(model.backbone, tuners, entry, classes, objective)
    model.load_trained_state(tensors, 'what was combined')
    finish(model)
    settings = (
        dict.fromkeys(('dataset', 'train', 'evaluation', 'seed'))
        | main.configuration
        | dict(model=dict(tuners=tuners, head=entry, tasks={}))
    )
    save_model(model, Path(output), dict(settings=settings, metrics={}))


class Ingredient:
    """One folder. state: its trained tensors.

    linear: for each tuner, the names of the tensors in which its update is linear.
    """

    def __init__(self, folder: str | Path):
        self.path = find_folder(folder)
        self.configuration = read_configuration(self.path)
        self.backbone: JsonObject = self.configuration['model']['backbone']
        self.tuners: list[JsonObject] = self.configuration['model']['tuners']
        self.objective: JsonObject = self.configuration['model'].get('objective') or DEFAULT
        preprocessing = self.configuration.get('preprocessing') or {}
        self.settings = architecture(self.backbone) | dict(
            preprocessing={name: value for name, value in preprocessing.items() if value is not None}
        )
        if self.configuration['model'].get('tasks'):
            raise UserError(
                f'{str(self.path)!r} is a model of several tasks, which are trained together; combine models '
                'of one task.'
            )

    def load(self, backbone: Backbone) -> None:
        model = load_model(self.path, backbone)
        self.state = model.trained_state()
        self.linear = []
        for i, tuner in enumerate(model.tuners):
            self.linear.append({f'tuners.{i}.{name}' for name in _linear(tuner)})


def _common_objective(ingredients: list[Ingredient], main: Ingredient) -> JsonObject:
    """The objective of `main`, without chosen numbers in which the folders differ. A warning names these."""
    if all(ingredient.objective == main.objective for ingredient in ingredients):
        return main.objective
    kept = _unchosen(main.objective)
    if dropped := sorted(
        set().union(
            *(ingredient.objective.keys() - _unchosen(ingredient.objective) for ingredient in ingredients)
        )
    ):
        warnings.warn(
            f'the combined model has no {" and no ".join(dropped)}: each model has another, which validation '
            'images chose for that model alone.',
            DataWarning,
            stacklevel=3,
        )
    return kept


def _unchosen(objective: JsonObject) -> JsonObject:
    chosen = OBJECTIVES.find(objective['type']).chosen
    return {key: value for key, value in objective.items() if key not in chosen}


def _linear(tuner: Tuner) -> set[str]:
    """The names in `state` of the tensors in which the tuner's whole update is linear.

    The set is empty if a part of the update is linear in no tensor.
    """
    said = {key: declared(delta).linear_in for key, delta in tuner.deltas.items() if delta.state_dict()}
    if not all(said.values()) or not all(isinstance(edit, Reweight) for edit in tuner._edits):
        return set()
    return {f'deltas.{key.replace("/", ".")}.{name}' for key, names in said.items() for name in names}


def _soup(ingredients: list[Ingredient], weights: list[float]) -> tuple[list[dict], Tensors]:
    if min(weights) < 0:
        raise UserError(
            f'weights are {weights}, but the weights of a mean are at least 0; for negative weights, use '
            'method "sum".'
        )
    _require_equal(ingredients, 'tuners', lambda ingredient: ingredient.tuners)
    _require_equal(ingredients, 'classes', lambda ingredient: ingredient.configuration['classes'])
    return ingredients[0].tuners, _mean(ingredients, weights, 'tuners.')


def _sum(ingredients: list[Ingredient], weights: list[float]) -> tuple[list[dict], Tensors]:
    tuners: list[dict] = []
    tensors: Tensors = {}
    for ingredient, weight in zip(ingredients, weights):
        for i, (entry, linear) in enumerate(zip(ingredient.tuners, ingredient.linear)):
            trained = {
                name: tensor for name, tensor in ingredient.state.items() if name.startswith(f'tuners.{i}.')
            }
            if trained and not linear:
                raise UserError(
                    f'the update of {entry["type"]} in {str(ingredient.path)!r} is not linear in its '
                    f'tensors, so it cannot be scaled and summed ({entry}); LoRA and its kin '
                    'can, or use method "soup".'
                )
            for name, tensor in trained.items():
                place = f'tuners.{len(tuners)}.{name.split(".", 2)[2]}'
                tensors[place] = weight * tensor if name in linear else tensor
            # the result is not trained, so it needs no dropout
            tuners.append(
                {key: value for key, value in entry.items() if key not in ('dropout', 'lora_dropout')}
            )
    return tuners, tensors


METHODS = dict(soup=_soup, sum=_sum)


def _head(ingredients: list[Ingredient], weights: list[float], head: int | None) -> Tensors:
    if head is not None:
        ingredients, weights = [ingredients[head]], [1.0]
    advice = "Say which head the result has (head=0: the first folder's)."
    _require_equal(ingredients, 'classes', lambda ingredient: ingredient.configuration['classes'], advice)
    _require_equal(ingredients, 'heads', lambda ingredient: ingredient.configuration['model']['head'], advice)
    _require_equal(ingredients, 'objectives', lambda ingredient: _unchosen(ingredient.objective), advice)
    return _mean(ingredients, weights, 'head.')


def _mean(ingredients: list[Ingredient], weights: list[float], start: str) -> Tensors:
    """The weighted mean of the tensors whose names begin with `start`, computed in float64.

    Tensors of whole numbers have no mean, and must be equal.
    """
    mean: Tensors = {}
    total = sum(weights)
    if total == 0:
        raise UserError(
            f'weights are {weights}, whose sum is 0, so there is no mean; change a weight or, for a sum, say '
            "which head the result has (head=0: the first folder's)."
        )
    for name in sorted(
        {name for ingredient in ingredients for name in ingredient.state if name.startswith(start)}
    ):
        tensors = [ingredient.state.get(name, torch.empty(0)) for ingredient in ingredients]
        first = tensors[0]
        for ingredient, tensor in zip(ingredients, tensors):
            if tensor.shape != first.shape or not (tensor.is_floating_point() or torch.equal(tensor, first)):
                raise UserError(
                    f'{name!r} in {str(ingredients[0].path)!r} and {str(ingredient.path)!r} have no mean: '
                    f'they must have one shape (given {tuple(first.shape)} and {tuple(tensor.shape)}), '
                    'and equal values where they are whole numbers. Combine runs of one config and one seed.'
                )
        mean[name] = (
            first
            if not first.is_floating_point()
            else sum(
                (weight / total * tensor.double() for weight, tensor in zip(weights, tensors)),
                torch.tensor(0.0),
            ).to(first.dtype)
        )
    return mean


def _require_equal(
    ingredients: list[Ingredient],
    name: str,
    of: Callable[[Ingredient], object],
    advice: str = 'Combine folders that agree in them.',
    shown: Callable[[Ingredient], str] | None = None,
) -> None:
    for ingredient in ingredients[1:]:
        if of(ingredient) != of(ingredients[0]):
            first, other = (
                shown(each) if shown else reprlib.repr(of(each)) for each in (ingredients[0], ingredient)
            )
            raise UserError(
                f'{str(ingredients[0].path)!r} and {str(ingredient.path)!r} have different {name}: '
                f'{first} and {other}. {advice}'
            )
