"""Finds faults and unusual things in photos. Reads only the files, and uses no network."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from vet.check.photos import Photo, Photos
from vet.check.sameness import Seen, groups_of, near_pairs

UNUSUAL = 8  # times the usual number of pixels, or a part of it
FEW = 10  # photos of a class
UNEQUAL = 10  # times as many photos in the largest class as in the smallest


@dataclass(frozen=True)
class Finding:
    """kind: a short name. text: a sentence. paths: the files. is_wrong: a fault, not only unusual."""

    kind: str
    text: str
    paths: tuple[str, ...] = ()
    is_wrong: bool = False

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def findings(photos: Photos, looks: Sequence[Seen]) -> list[Finding]:
    """All findings of the files. looks: of each photo, in the order of the photos."""
    seen = [(photo, look) for photo, look in zip(photos.photos, looks) if not look.error]
    return [
        *_unread(photos, looks),
        *_copies(seen),
        *_near_copies(seen),
        *_class_names(photos.classes),
        *_forms(seen),
        *_counts(photos),
    ]


def _unread(photos: Photos, looks: Sequence[Seen]) -> Iterator[Finding]:
    for photo, look in zip(photos.photos, looks):
        if look.error:
            yield Finding('unreadable', look.error, (photo.path,), is_wrong=True)
    for reason, paths in sorted(photos.left_out.items()):
        yield Finding('left out', f'{len(paths):,} files are left out: {reason}.', tuple(paths))


def _copies(seen: list[tuple[Photo, Seen]]) -> Iterator[Finding]:
    """Photos with equal pixels."""
    groups = defaultdict(list)
    for photo, look in seen:
        groups[look.pixels].append(photo)
    for same in groups.values():
        if len(same) > 1:
            yield _of_copies(same, 'copy', 'are equal')


def _near_copies(seen: list[tuple[Photo, Seen]]) -> Iterator[Finding]:
    """Groups of photos that look the same, but are not all equal."""
    groups = defaultdict(list)
    for item, group in zip(seen, groups_of(len(seen), near_pairs([look.mark for _, look in seen]))):
        groups[group].append(item)
    for same in groups.values():
        if len({look.pixels for _, look in same}) > 1:
            yield _of_copies([photo for photo, _ in same], 'near copy', 'look the same')


def _of_copies(same: list[Photo], kind: str, words: str) -> Finding:
    paths = tuple(photo.path for photo in same)
    labels, splits = {photo.label for photo in same}, {photo.split for photo in same}
    where = ''
    if len(labels) > 1:
        kind, where = f'{kind} across classes', f', but have the classes {", ".join(sorted(labels))}'
    elif len(splits) > 1:
        kind = f'{kind} across splits'
        where = f', but are in {" and ".join(sorted(map(str, splits)))}: a test result would be too good'
    return Finding(kind, f'{len(same)} photos {words}{where}.', paths, is_wrong=bool(where))


def _class_names(classes: Sequence[str]) -> Iterator[Finding]:
    """Class names that differ only in case, spaces, or the form of their letters."""
    alike = defaultdict(list)
    for name in classes:
        plain = unicodedata.normalize('NFKD', name).casefold()
        alike[''.join(letter for letter in plain if letter.isalnum())].append(name)
    for names in alike.values():
        if len(names) > 1:
            listed = ' and '.join(map(repr, names))
            text = f'the class names {listed} differ only in case, spaces or accents. Are they one class?'
            yield Finding('class names', text, is_wrong=True)


def _forms(seen: list[tuple[Photo, Seen]]) -> Iterator[Finding]:
    """Unusual sizes, modes and tags of rotation."""
    areas = sorted(look.size[0] * look.size[1] for _, look in seen)
    usual = areas[len(areas) // 2] if areas else 0
    small, large, turned = [], [], []
    modes = defaultdict(list)
    for photo, look in seen:
        area = look.size[0] * look.size[1]
        if area * UNUSUAL < usual:
            small.append(photo.path)
        if area > usual * UNUSUAL:
            large.append(photo.path)
        if look.turned:
            turned.append(photo.path)
        modes[look.mode].append(photo.path)
    usual_mode = max(modes, key=lambda mode: len(modes[mode]), default='')
    for paths, text in (
        (small, f'{len(small):,} photos have less than an eighth of the usual {usual:,} pixels.'),
        (large, f'{len(large):,} photos have more than {UNUSUAL} times the usual {usual:,} pixels.'),
    ):
        if paths:
            yield Finding('size', text, tuple(paths))
    if turned:
        text = f'{len(turned):,} photos have a tag that turns them. vet turns them; other programs may not.'
        yield Finding('rotation', text, tuple(turned))
    for mode, paths in sorted(modes.items()):
        if mode != usual_mode:
            text = f'{len(paths):,} photos have the mode {mode}; most have {usual_mode}.'
            yield Finding('mode', text, tuple(paths))


def _counts(photos: Photos) -> Iterator[Finding]:
    counts = photos.counts
    few = [f'{name} ({count})' for name, count in sorted(counts.items()) if count < FEW]
    if few:
        text = f'{len(few):,} classes have fewer than {FEW} photos: {", ".join(few[:10])}.'
        yield Finding('few photos', text)
    [(most, high), *_, (least, low)] = counts.most_common() if len(counts) > 1 else [('', 1), ('', 1)]
    if high > UNEQUAL * low:
        text = f'the classes are unequal: {most} has {high:,} photos, {least} has {low:,}.'
        yield Finding('imbalance', text)


def says(found: Sequence[Finding], most: int = 5) -> Iterator[str]:
    """The findings as lines: the faults first, at most `most` of each kind."""
    order = sorted(found, key=lambda finding: (not finding.is_wrong, finding.kind))
    shown: Counter[str] = Counter()
    totals = Counter(finding.kind for finding in found)
    for finding in order:
        shown[finding.kind] += 1
        if shown[finding.kind] <= most:
            where = f' ({", ".join(finding.paths[:3])}{", …" * (len(finding.paths) > 3)})' * bool(
                finding.paths
            )
            yield f'{finding.kind}: {finding.text}{where}'
        elif shown[finding.kind] == most + 1:
            yield f'{finding.kind}: {totals[finding.kind] - most:,} more. --format json lists all.'
