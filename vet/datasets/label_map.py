"""Labels for a pretrained classifier, which has more classes than the dataset.

A label is a place in the output of the classifier.
"""

from collections.abc import Mapping

from vet.datasets.class_names import LISTS, class_list, to_nfc
from vet.errors import DataError, UserError


def class_numbers(
    names: list[str], classes: object, label_map: Mapping[str, int] | None
) -> tuple[list[str], dict[str, int]]:
    """All class names, and the label of each of `names`.

    The class names are `names` if `classes` is None. A label is the place of a name among the class names, or
    the number in label_map.
    """
    if classes is None and label_map is not None:
        raise UserError(
            f'label_map is {dict(label_map)}, but the list of classes is missing. Give all classes of the '
            f'output too: classes=[…], or one of {", ".join(map(repr, LISTS))}.'
        )
    every = names if classes is None else class_list(classes)
    given = {name: label for label, name in enumerate(every)} if label_map is None else label_map
    labels = {to_nfc(str(name)): label for name, label in given.items()}
    if unknown := [name for name in names if name not in labels]:
        raise DataError(
            f'{", ".join(unknown[:10])}: no place among the {len(every)} classes'
            + (
                ' of label_map; add it there.'
                if label_map is not None
                else ' that `classes` names. Correct the names, add them to classes=[…], or, for a backbone '
                f'that keeps its classifier, give the place of each by label_map=dict({unknown[0]}=…).'
            )
        )
    if wrong := {name: label for name, label in labels.items() if label not in range(len(every))}:
        raise UserError(
            f'label_map has {wrong}, but the output has {len(every)} classes: labels are 0 … '
            f'{len(every) - 1}.'
        )
    return every, {name: labels[name] for name in names}
