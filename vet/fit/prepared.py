"""Reads photos for a training, leaves some out, and groups photos that stay in one split."""

import csv
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sklearn.model_selection import StratifiedGroupKFold

from vet.check.findings import findings
from vet.check.page import check_page
from vet.check.photos import Photos, read_photos
from vet.check.sameness import Seen, groups_of, look, near_pairs, to_leave_out
from vet.errors import UserError
from vet.files import write_file
from vet.fit.split import LEAST, divide, too_small
from vet.log import say
from vet.patterns import part_of, require_pattern


@dataclass(frozen=True)
class Prepared:
    """photos: those that are taken. groups: of each photo; a group stays in one split.

    things: how many things vet check finds in all photos. page: check.html; empty if vet check finds nothing.
    """

    photos: Photos
    groups: list[int]
    things: int = 0
    page: str = ''

    @property
    def labels(self) -> list[str]:
        return [photo.label for photo in self.photos.photos]

    @property
    def given(self) -> list[str | None]:
        """The split of each photo, as the user has made the splits."""
        return [photo.split for photo in self.photos.photos]

    def write_check(self, path: Path) -> None:
        """Writes what vet check finds, if it finds anything, and says so."""
        if self.page:
            write_file(path, self.page)
            say(f'vet check finds {self.things:,} things to look at: {path}')

    def divided(self, holdout: float, seed: int) -> list[str]:
        """The split of each photo: 'train', 'val' or 'test'.

        UserError if no photo of a class is in train, or if val or test has no photo.
        """
        splits = divide(self.labels, self.groups, holdout, seed, self.given)
        if missing := self._missing(splits, 'train'):
            raise UserError(
                f'the class {missing[0]!r} has no photo to learn from: all photos of the class are for '
                'validation or for the test. Add photos of the class, or remove the class.'
            )
        for split, purpose in (('val', 'choose the best epoch by'), ('test', 'report on')):
            if split not in splits:
                raise UserError(
                    f'no photo is left to {purpose}: a class needs one more photo in train that does not '
                    'look like the others, and that --group-by does not put with the others.'
                )
            if missing := self._missing(splits, split):
                say(f'No photo is left to {purpose} in these classes: {", ".join(missing[:10])}.')
        return splits

    def _missing(self, splits: Sequence[str], split: str) -> list[str]:
        """The classes without a photo in `split`."""
        present = {label for label, of_label in zip(self.labels, splits) if of_label == split}
        return sorted(set(self.labels) - present)

    def says_what_is_apart(self, splits: Sequence[str]) -> str:
        """A sentence about groups that are in several splits, because the user has made the splits."""
        parts: dict[int, set[str]] = defaultdict(set)
        for group, split in zip(self.groups, splits):
            parts[group].add(split)
        apart = Counter(split for group, split in zip(self.groups, splits) if len(parts[group]) > 1)
        said = [
            f'Some photos for the {purpose} look like photos of another part, or --group-by puts them with '
            f'such photos (number of photos: {apart[split]:,}). The result of the {purpose} will be too good.'
            for split, purpose in (('test', 'test'), ('val', 'validation'))
            if apart[split]
        ]
        return ' '.join(said) or 'Photos that look the same are in one part.'

    def folds(self, count: int, holdout: float, seed: int) -> list[list[str]]:
        """The splits of `count` trainings, so that each photo is in test once. Classes are spread evenly.

        UserError if the user has made splits, or if a class would be missing in a training.
        """
        if any(self.given):
            raise UserError(
                '--folds divides all photos, but the photos are divided already, into folders or by a '
                'column. Leave --folds out, or give photos without splits.'
            )
        if count > (most := min(Counter(self.labels).values())):
            raise UserError(
                f'--folds is {count}, but the smallest class has {most} photos. Give --folds 2 to {most}.'
            )
        made = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        splits = []
        for _, test in made.split(self.labels, self.labels, self.groups):
            given: list[str | None] = ['train'] * len(self.labels)
            for item in test:
                given[item] = 'test'
            splits.append(divide(self.labels, self.groups, holdout, seed, given))
            if missing := self._missing(splits[-1], 'train'):
                raise UserError(
                    f'with --folds {count}, the class {missing[0]!r} would be in no training photo, because '
                    'photos of the class stay together. Give other --folds, or add photos.'
                )
        return splits

    def write_table(self, path: Path, splits: Sequence[str]) -> None:
        """A CSV path,label,split."""
        with open(path, 'w', newline='', encoding='utf-8') as file:
            rows = csv.writer(file)
            rows.writerow(('path', 'label', 'split'))
            for photo, split in zip(self.photos.photos, splits):
                rows.writerow((Path(photo.path).absolute(), photo.label, split))


def prepared(source: Path, run: Path, strict: bool = False, group_by: str | None = None) -> Prepared:
    """The photos of `source`. An archive is unpacked into the folder `run`.

    UserError for photos from which nothing can be learned.
    """
    photos = read_photos(source, run / 'photos')
    looks = look([photo.path for photo in photos.photos])
    found = findings(photos, looks)
    page = check_page(photos, found) if found else ''
    seen = _without_broken_and_copies(photos, looks, strict)
    groups = _without_small_classes(photos, _groups(photos, seen, group_by))
    say(photos.says())
    return Prepared(photos, groups, len(found), page)


def _without_broken_and_copies(photos: Photos, looks: list[Seen], strict: bool) -> list[Seen]:
    """Leaves broken files and copies out. Returns the look at each photo that stays."""
    broken = [seen.error for seen in looks if seen.error]
    if broken and strict:
        listed = '\n'.join(f'  {error}' for error in broken)
        raise UserError(f'{len(broken):,} files cannot be read. Mend or remove the files:\n{listed}')
    for error in broken:
        say(f'broken: {error}')
    reasons = to_leave_out(photos.photos, looks)
    kept = [seen for photo, seen in zip(photos.photos, looks) if photo.path not in reasons]
    photos.leave_out(reasons)
    return kept


def _groups(photos: Photos, seen: list[Seen], group_by: str | None) -> list[int]:
    """The group of each photo: photos that look the same, or whose paths give the same text to group_by."""
    pairs = near_pairs([look.mark for look in seen])
    if group_by is not None:
        pairs += _pairs_by_path(photos, group_by)
    return groups_of(len(photos.photos), pairs)


def _pairs_by_path(photos: Photos, group_by: str) -> list[tuple[int, int]]:
    require_pattern(group_by, '--group-by')
    first: dict[str, int] = {}
    pairs = []
    for item, photo in enumerate(photos.photos):
        if (key := part_of(group_by, photo.path)) is None:
            raise UserError(
                f'--group-by {group_by!r} fits no part of {photo.path!r}. Give a regular expression that '
                'fits every path.'
            )
        pairs.append((first.setdefault(key, item), item))
    return [pair for pair in pairs if pair[0] != pair[1]]


def _without_small_classes(photos: Photos, groups: list[int]) -> list[int]:
    """Leaves out classes that cannot be in all three splits. UserError if fewer than two classes stay."""
    labels = [photo.label for photo in photos.photos]
    small = set(too_small(labels, groups)) if not any(photo.split for photo in photos.photos) else set()
    if len(set(labels) - small) < 2:
        counts = ', '.join(f'{name!r} {number}' for name, number in sorted(photos.counts.items())[:10])
        raise UserError(
            f'{photos.says()} Photos of each class: {counts}. At least two classes need {LEAST} photos that '
            'do not look the same and that --group-by does not put together: one to learn from, one to '
            'choose by, one to report on. Add photos.'
        )
    if not small:
        return groups
    kept = [group for group, label in zip(groups, labels) if label not in small]
    photos.leave_out(
        {p.path: f'of classes with fewer than {LEAST} photos' for p in photos.photos if p.label in small}
    )
    say(f'Left out, because a class needs {LEAST} photos: {", ".join(sorted(small)[:10])}.')
    return kept
