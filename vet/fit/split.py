"""Divides photos once: train learns, val chooses, test is reported."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

LEAST = 3  # photos of a class that do not look the same: one for each split


def divide(
    labels: Sequence[str], groups: Sequence[int], holdout: float, seed: int, given: Sequence[str | None] = ()
) -> list[str]:
    """The split of each photo: 'train', 'val' or 'test'.

    labels, groups: of each photo. A group stays in one split.
    holdout: the share of test, in each class. val is half as large. Each class has at least one photo in each
        split, if the class has LEAST groups.
    given: the splits that the user has made. Photos of test stay in test, and photos of val stay in val. A
        missing split is taken from train.
    """
    splits: list[str | None] = list(given) or [None] * len(labels)
    made = set(splits) - {None}
    wanted = [('test', holdout), ('val', holdout / 2)]
    if made:
        wanted = [(name, share) for name, share in wanted if name not in made]
        splits = [None if split == 'train' else split for split in splits]
    members: dict[int, list[int]] = defaultdict(list)
    for item, group in enumerate(groups):
        members[group].append(item)
    of_class: dict[str, list[list[int]]] = defaultdict(list)
    for items in members.values():
        of_class[labels[items[0]]].append(items)
    counts = Counter(labels)
    for name, share in wanted:
        for label in sorted(counts, key=lambda label: (counts[label], label)):
            taken = sum(splits[item] == name for item in _all(of_class[label]))
            free = [items for items in of_class[label] if _is_free(items, splits)]
            random.Random(f'{seed} {name} {label}').shuffle(free)
            free.sort(key=lambda items: len(items) > 1)  # photos that look the same stay in train
            keeps = 2 if name == 'test' and 'val' not in made else 1  # groups for val and train, or for train
            while taken < max(1, round(share * counts[label])) and len(free) > keeps:
                items = free.pop(0)
                for item in items:
                    splits[item] = name
                taken += len(items)
    return [split or 'train' for split in splits]


def _is_free(items: Sequence[int], splits: Sequence[str | None]) -> bool:
    return all(splits[item] is None for item in items)


def _all(groups: Sequence[Sequence[int]]) -> list[int]:
    return [item for items in groups for item in items]


def too_small(labels: Sequence[str], groups: Sequence[int]) -> list[str]:
    """The classes with fewer than LEAST groups."""
    found: dict[str, set[int]] = defaultdict(set)
    for label, group in zip(labels, groups):
        found[label].add(group)
    return sorted(label for label, of_label in found.items() if len(of_label) < LEAST)
