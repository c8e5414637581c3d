"""Labels that are places in the output of a pretrained classifier, which has more classes than the dataset."""

from collections.abc import Mapping, Sequence

from torchvision.models import ResNet50_Weights

from vet.errors import DataError, UnknownNameError, UserError

IMAGENET = ResNet50_Weights.DEFAULT.meta['categories']
LISTS = {'imagenet-1k': IMAGENET, 'imagenet-1k+background': ['background', *IMAGENET]}


def class_list(classes: str | Sequence[str]) -> list[str]:
    """`classes`, or the list of that name."""
    if isinstance(classes, str) and classes not in LISTS:
        raise UnknownNameError('list of classes', classes, LISTS, 'Or give all names, in the order of the output.')
    return list(map(str, LISTS[classes] if isinstance(classes, str) else classes))


def numbered(names: list[str], classes: str | Sequence[str] | None, label_map: Mapping[str, int] | None
             ) -> tuple[list[str], dict[str, int]]:
    """All class names (`names` where `classes` is None), and the label of each of `names`: its place among them, or label_map's."""
    if classes is None and label_map is not None:
        raise UserError(f'label_map is {dict(label_map)}, but places in what? Give all classes of the output too: classes=[…], or '
                        f'one of {", ".join(map(repr, LISTS))}.')
    every = names if classes is None else class_list(classes)
    labels = {name: label for label, name in enumerate(every)} if label_map is None else label_map
    if unknown := [name for name in names if name not in labels]:
        raise DataError(f'{", ".join(unknown[:10])}: no place among the {len(every)} classes of the output; add it to label_map=….')
    if wrong := {name: label for name, label in labels.items() if label not in range(len(every))}:
        raise UserError(f'label_map has {wrong}, but the output has {len(every)} classes: labels are 0 … {len(every) - 1}.')
    return every, {name: labels[name] for name in names}
