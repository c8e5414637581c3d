"""Checks one target of a dataset, and gives the target its plain form.

| target | plain form |
|---|---|
| a class | the number of the class |
| shares of classes | a tuple of K floats that sum to 1 |
| a set of classes | a tuple of K numbers: 1 for a class of the set, otherwise 0 |
| numbers | a tuple of floats, one for each name |
| a mask | a uint8 tensor (H, W): the class of each pixel, or IGNORED |

The plain form of a plain form is the same plain form. Plain forms of equal targets are equal.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch

from vet.errors import UserError

SUM_TOLERANCE = 1e-3  # of shares, which a user may have rounded
IGNORED = 255  # of a mask: a pixel without a class

Plain = int | tuple[int, ...] | tuple[float, ...] | torch.Tensor
"""The plain form of a target."""

Name = Callable[[], str]
"""Words for the item that a target belongs to, such as "image 3 of Digits"."""


def as_label(label: Any, num_classes: int, name: Name) -> int:
    """A class number 0 … K-1. UserError for any other value. An array or tensor with an axis is no label."""
    try:
        number = -1 if np.ndim(label) else operator.index(label)
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number < num_classes:
        raise UserError(
            f'{name()} has the label {_shown(label)}, but there are {num_classes} classes: a '
            f'label is a whole number from 0 to {num_classes - 1}, the place of the name in `classes`.'
            f'{_remedy(label)}'
        )
    return number


def as_class(target: object, classes: Sequence[str], name: Name) -> int | tuple[float, ...]:
    """A class number; or shares of the K classes: K floats in 0..1 that sum to 1, such as [0.2, 0.8].

    UserError for any other value, also for several classes, such as [1.0, 0.0, 1.0].
    """
    values = _values(target)
    is_row = values is not None and values.shape == (len(classes),) and np.asarray(target).dtype.kind == 'f'
    if values is None or not is_row or (np.isin(values, (0, 1)).all() and values.sum() != 1):
        return as_label(target, len(classes), name)
    for key, value in zip(classes, values.tolist()):
        if not 0 <= value <= 1:
            raise UserError(
                f'{name()} has the share {value:g} for the class {key!r}; a share is a number from 0 to 1. '
                'Correct the share. If the target is several numbers, set '
                'model.objective=dict(type="Regression").'
            )
    if abs(values.sum() - 1) > SUM_TOLERANCE:
        raise UserError(
            f'{name()} has shares of the {len(classes)} classes that sum to {values.sum():g}: '
            f'{_shown(target)}; shares sum to 1. Divide the shares by their sum. If an image has several '
            'classes, set model.objective=dict(type="MultiLabel").'
        )
    return tuple(values.tolist())


def as_class_set(target: Any, classes: Sequence[str], name: Name) -> tuple[int, ...]:
    """A set of classes as K numbers, 1 or 0.

    target: a set of class numbers or of class names, such as {0, 3}; a list of class names; a list, array or
        tensor of K values, each 0 or 1; or one class number. UserError for any other value.
    """
    has_names = isinstance(target, list | tuple) and all(isinstance(member, str) for member in target)
    if isinstance(target, Set) or has_names:
        numbers = {_place(member, classes, target, name) for member in target}
        return tuple(int(number in numbers) for number in range(len(classes)))
    if not isinstance(target, bool | np.bool_) and np.ndim(target) == 0 and hasattr(target, '__index__'):
        number = as_label(target, len(classes), name)
        return tuple(int(place == number) for place in range(len(classes)))
    values = _values(target)
    if values is None or values.shape != (len(classes),):
        raise UserError(
            f'{name()} has the target {_shown(target)}, but the target is a set of the {len(classes)} '
            f'classes. Give a set of class numbers or names, such as {{0, {len(classes) - 1}}}, or '
            f'{len(classes)} values, each 0 or 1, in the order of `classes`.'
        )
    if not np.isin(values, (0, 1)).all():
        place = int(np.flatnonzero(~np.isin(values, (0, 1)))[0])
        raise UserError(
            f'{name()} has the value {values[place]:g} for the class {classes[place]!r}; allowed: 1 if the '
            'image has the class, and 0 if not. Correct the target, or leave the image out.'
        )
    return tuple(int(value) for value in values)


def as_numbers(target: object, names: Sequence[str], name: Name) -> tuple[float, ...]:
    """One finite float for each of `names`.

    target: a number, if there is one name; a list, array or tensor of numbers in the order of `names`; or a
        dict {name: number}. UserError for any other value, such as NaN.
    """
    if isinstance(target, Mapping) and set(target) == set(names):
        target = [target[key] for key in names]
    values = _values(target)
    if values is None or values.size != len(names) or values.ndim > 1:
        raise UserError(
            f'{name()} has the target {_shown(target)}, but the target is {_numbers(names)}. Give a finite '
            "number for each name, in this order. For a CSV, name the columns of numbers: targets=['road']."
        )
    for key, value in zip(names, values.reshape(-1).tolist()):
        if not math.isfinite(value):
            raise UserError(
                f'{name()} has the number {value} as {key!r}; a target is a finite number. Correct the '
                'number, or leave the image out.'
            )
    return tuple(values.reshape(-1).tolist())


def as_mask(target: object, classes: Sequence[str], name: Name) -> torch.Tensor:
    """A mask as a uint8 tensor (H, W): the class number of each pixel, or IGNORED.

    target: an array or tensor (H, W) of whole numbers, or a PIL image of gray or palette pixels. UserError
        for any other value.
    """
    try:
        values = np.asarray(target)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.ndim != 2 or values.dtype.kind not in 'biu' or not values.size:
        given = values if values.size and values.ndim else target
        raise UserError(
            f'{name()} has the target {_shown(given)}, but the target is a mask: whole numbers (H, W), the '
            'class of each pixel. Give an array, or a PIL image of gray or palette pixels.'
        )
    wrong = values[((values < 0) | (values >= len(classes))) & (values != IGNORED)]
    if wrong.size:
        raise UserError(
            f'{name()} has the value {int(wrong[0])} in {wrong.size:,} of the {values.size:,} pixels of its '
            f'mask, but there are {len(classes)} classes: a value is a class number from 0 to '
            f'{len(classes) - 1}, or {IGNORED} for a pixel that is left out. Correct the mask, add the '
            f'class, or give the value {IGNORED} to these pixels.'
        )
    return torch.from_numpy(values.astype(np.uint8))


def _place(member: object, classes: Sequence[str], target: object, name: Name) -> int:
    if isinstance(member, str):
        if member not in classes:
            raise UserError(
                f'{name()} has the class {member!r} in its target {_shown(target)}, but `classes` has no '
                f'such name among {len(classes)}. Correct the name, or add the name to `classes`.'
            )
        return list(classes).index(member)
    return as_label(member, len(classes), name)


def _values(target: object) -> np.ndarray | None:
    """The numbers of a target as float64. None: the target does not consist of numbers."""
    try:
        values = np.asarray(target)
        return values.astype(float) if values.dtype.kind in 'biuf' else None
    except (TypeError, ValueError):
        return None


def _remedy(label: object) -> str:
    """Advice for a target that another objective takes."""
    values = _values(label)
    if isinstance(label, Set) or (values is not None and values.ndim):
        return (
            ' If an image has several classes, set model.objective=dict(type="MultiLabel"). If the target is '
            'several numbers, set model.objective=dict(type="Regression").'
        )
    if values is not None and values.dtype.kind == 'f' and isinstance(label, float | np.floating):
        return (
            ' If the target is a measured number, set model.objective=dict(type="Regression"). Otherwise '
            'give whole numbers.'
        )
    if values is not None and values < 0:
        return ' An image without a label has no place in the dataset: leave the image out.'
    if isinstance(label, str):
        return ' Give the number of the class in place of a text.'
    return ' Correct the label, or add the class to `classes`.'


def _numbers(names: Sequence[str]) -> str:
    return f'one number, {names[0]!r}' if len(names) == 1 else f'{len(names)} numbers: {", ".join(names)}'


def _shown(target: object) -> str:
    kind = type(target).__name__
    if shape := getattr(target, 'shape', ()):
        kind += f' of {str(getattr(target, "dtype", "")).removeprefix("torch.")}, of shape {tuple(shape)}'
    return f'{" ".join(str(target).split())[:60]} ({kind})'
