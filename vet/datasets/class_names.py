"""Lists of class names, and the forms in which users give such lists."""

import operator
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Set

import numpy as np
from torchvision.models import ResNet50_Weights

from vet.errors import DataWarning, UnknownNameError, UserError

IMAGENET = ResNet50_Weights.DEFAULT.meta['categories']
LISTS = {'imagenet-1k': IMAGENET, 'imagenet-1k+background': ['background', *IMAGENET]}


def class_list(classes: object) -> list[str]:
    """The names of all classes, in the order of the labels 0 … K-1, in the composed Unicode form (NFC).

    classes: names in order, each a text or a whole number; a dict {name: number} or {number: name}, whose
        numbers are the labels (a Series of pandas is such a dict); or the name of a known list.
    UserError for a set, which has no order. UserError also for a name that is there twice, that is empty,
    that is no text (None, NaN, bytes), or that no file can hold.
    """
    if isinstance(classes, str):
        if classes not in LISTS:
            raise UnknownNameError(
                'list of classes', classes, LISTS, 'Or give all names, in the order of the labels.'
            )
        return list(LISTS[classes])
    if isinstance(classes, Set) and not isinstance(classes, Mapping):
        raise UserError(
            f'the classes are a set, {_shown(classes)}, which has no order; give a list, in the order of the '
            'labels 0, 1, ….'
        )
    if not isinstance(classes, Iterable):
        raise UserError(
            f'the classes are {classes!r}; give a list of names, in the order of the labels 0, 1, ….'
        )
    if not isinstance(classes, Mapping) and hasattr(classes, 'items') and hasattr(classes, 'keys'):
        classes = dict(classes.items())
    names = [_name(name) for name in (_by_number(classes) if isinstance(classes, Mapping) else classes)]
    check_writable(names)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f'the class {twice[0]!r} is named {names.count(twice[0])} times among {len(names)} classes '
            f'({len(twice)} such names). Give each class another name.'
        )
    return names


def _name(name: object) -> str:
    """A class name as text, in its composed form. UserError for a value that is no name."""
    try:
        is_text = isinstance(name, str | bool | np.bool_)
        text = str(name if is_text else operator.index(name))  # type: ignore[arg-type]  # see `except`
    except TypeError:
        raise UserError(
            f'a class name is {name!r} ({type(name).__name__}); a name is a text, or a whole number. Correct '
            'the list of names.'
        ) from None
    if not text.strip():
        raise UserError(f'a class name is {name!r}, which nobody can read. Give each class a name.')
    return to_nfc(text)


def warn_of_likes(names: Iterable[str]) -> None:
    """A DataWarning if two names of folders or labels differ only in case or in spaces at their ends.

    Typing errors make such names. Names of one letter may differ in case, as the classes of EMNIST do.
    """
    first = dict[str, str]()
    for name in names:
        like = first.setdefault(name.strip().casefold(), name)
        if like != name and (len(name) > 1 or len(like) > 1):
            warnings.warn(
                DataWarning(
                    f'the classes {like!r} and {name!r} differ only in case or spaces, and count as two '
                    'classes. If they mean one class, give them one name.'
                ),
                stacklevel=3,
            )
            return


def _by_number(classes: Mapping[object, object]) -> list[object]:
    """The names of {name: number} or {number: name}, in the order of the numbers."""
    named = {number: name for name, number in classes.items() if _is_number(number)}
    if len(named) < len(classes):
        named = {number: name for number, name in classes.items() if _is_number(number)}
    if len(named) < len(classes) or set(named) != set(range(len(classes))):
        raise UserError(
            f'the classes are the dict {_shown(classes.items())}; a dict must give each class another number '
            f'from 0 to {len(classes) - 1}: {{name: number}} or {{number: name}}.'
        )
    return [named[number] for number in range(len(named))]


def _is_number(value: object) -> bool:
    return hasattr(value, '__index__') and not isinstance(value, bool)


def to_nfc(name: str) -> str:
    """A name in the composed Unicode form. macOS writes 'é' as two characters, other systems as one."""
    return unicodedata.normalize('NFC', name)


def check_writable(names: Iterable[str]) -> None:
    """UserError for a name that no file can hold: a file name may have bytes that are no UTF-8."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = name.encode('utf-8', 'backslashreplace').decode()
            raise UserError(
                f'the class name "{shown}" is not UTF-8, so that no model folder could hold it. Rename its '
                'folder, or correct the list of names.'
            ) from None


def _shown(values: Iterable[object]) -> str:
    some = [repr(value) for value in values]
    return ', '.join(some[:5]) + (f', … ({len(some)})' if len(some) > 5 else '')
