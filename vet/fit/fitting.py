"""From photos to a tuned model and an honest sentence: read, divide, choose, train, report."""

import csv
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from pprint import pformat
from typing import Any

from scipy.stats import binomtest

from vet.builders import build_trainer
from vet.check.photos import Photos, read_photos
from vet.check.sameness import Seen, groups_of, look, near_pairs, to_leave_out
from vet.errors import UserError
from vet.files import write_file
from vet.fit.choices import BATCH, MOST_EPOCHS, Plan, backbone_entry, plan
from vet.fit.split import LEAST, divide, too_small
from vet.log import say
from vet.patterns import part_of, require_pattern
from vet.registry import TUNERS
from vet.seeding import seed_everything

USUAL: dict[str, dict[str, Any]] = {'LoRA': dict(rank=8)}  # arguments of a tuner, beside its defaults


STILL = [dict(type='EvaluationCrop')]  # as in evaluation
AUGMENTED = [dict(type='RandomResizedCrop', scale=[0.4, 1.0]), dict(type='RandomHorizontalFlip')]


@dataclass(frozen=True)
class Options:
    """What the user may choose. See `vet fit --help`."""

    backbone: str | None = None
    checkpoint: str | None = None
    minutes: float = 10.0
    tuner: str = 'auto'
    holdout: float = 0.2
    group_by: str | None = None
    strict: bool = False
    seed: int = 0
    device: str | None = None

    def check(self) -> None:
        if not 0.01 <= self.holdout <= 0.5:
            raise UserError(f'--holdout is {self.holdout:g}; give a share of 0.01 to 0.5, such as 0.2.')
        if not 0 < self.minutes <= 60 * 24 * 30:
            raise UserError(f'--minutes is {self.minutes:g}; give a number above 0, such as 10.')


@dataclass
class Result:
    """accuracy, probe, majority: 0..1, on the `images` of test. low, high: the 95 % interval of accuracy."""

    accuracy: float
    probe: float
    majority: float
    images: int
    low: float
    high: float
    folder: Path
    notes: list[str] = field(default_factory=list)

    def says(self) -> str:
        return (
            f'{100 * self.accuracy:.1f} % of {self.images:,} test images are right (95 % interval '
            f'{100 * self.low:.1f} to {100 * self.high:.1f} %). The linear probe: {100 * self.probe:.1f} %. '
            f'Always the most frequent class: {100 * self.majority:.1f} %.'
        )


def fit(source: Path, run: Path, options: Options) -> Result:
    """Trains a model on the photos in `source`, and writes everything into the new folder `run`.

    UserError for photos from which nothing can be learned.
    """
    if source.is_dir() and run.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f'the run would write into {str(run)!r}, a folder of the photos {str(source)!r}. Call vet fit '
            'from another folder, or give --out DIR.'
        )
    options.check()
    seed_everything(options.seed)
    backbone = backbone_entry(options.backbone, options.checkpoint)
    tuners = [_tuner(options.tuner)]
    _make(run)
    try:
        photos, splits = _divided(source, run, options)
    except UserError:
        shutil.rmtree(run)
        raise
    say(photos.says())
    counts = Counter(splits)
    say(
        f'{counts["train"]:,} images to learn from, {counts["val"]:,} to choose by, {counts["test"]:,} to '
        'report on. Photos that look the same are in one part.'
    )
    table = run / 'photos.csv'
    _write_table(table, photos, splits)
    chosen = plan(backbone, tuners, photos.classes, counts['train'], options.minutes, options.device)
    say(_says(chosen, options.minutes))
    probe = _train(
        run / 'probe', _config(table, photos, chosen, [dict(type='LinearProbe')], options.seed), options
    )
    config = _config(table, photos, chosen, tuners, options.seed)
    write_file(run / 'config.py', _as_file(config))
    summary = _train(run / 'tuned', config, options)
    right = round(summary['accuracy'] * counts['test'])
    interval = binomtest(right, counts['test']).proportion_ci(method='wilson')
    of_test = Counter(photo.label for photo, split in zip(photos.photos, splits) if split == 'test')
    frequent = Counter(photo.label for photo, split in zip(photos.photos, splits) if split == 'train')
    majority = of_test[frequent.most_common(1)[0][0]] / counts['test']
    return Result(
        summary['accuracy'], probe['accuracy'], majority, counts['test'], interval.low, interval.high, run
    )


def _divided(source: Path, run: Path, options: Options) -> tuple[Photos, list[str]]:
    """The photos that are taken, and the split of each."""
    photos = read_photos(source, run / 'photos')
    seen = _without_broken_and_copies(photos, options.strict)
    groups = _without_small_classes(photos, _groups(photos, seen, options.group_by))
    labels, given = [photo.label for photo in photos.photos], [photo.split for photo in photos.photos]
    return photos, divide(labels, groups, options.holdout, options.seed, given)


def new_run(source: Path, out: str | None) -> Path:
    """The folder of a run: `out`, or runs/PHOTOS/TIME."""
    if out is not None:
        return Path(out)
    return Path('runs') / source.resolve().name.partition('.')[0] / time.strftime('%Y%m%d-%H%M%S')


def _make(run: Path) -> None:
    try:
        run.mkdir(parents=True)
    except FileExistsError as error:
        raise UserError(f'{str(run)!r} exists. Give --out the path of a new folder.') from error
    except OSError as error:
        raise UserError(
            f'the folder {str(run)!r} cannot be made: {error.strerror}. Call vet fit from a folder that you '
            'can write to, or give --out DIR.'
        ) from error


def _without_broken_and_copies(photos: Photos, strict: bool) -> list[Seen]:
    """Leaves broken files and copies out. Returns the look at each photo that stays."""
    looks = look([photo.path for photo in photos.photos])
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


def _write_table(path: Path, photos: Photos, splits: list[str]) -> None:
    with open(path, 'w', newline='', encoding='utf-8') as file:
        rows = csv.writer(file)
        rows.writerow(('path', 'label', 'split'))
        for photo, split in zip(photos.photos, splits):
            rows.writerow((Path(photo.path).absolute(), photo.label, split))


def _tuner(name: str) -> dict[str, Any]:
    """The config entry of a tuner. UserError for an unknown name."""
    chosen = 'LoRA' if name == 'auto' else name
    TUNERS.find(chosen)
    return {**USUAL.get(chosen, {}), 'type': chosen}


def _says(chosen: Plan, minutes: float) -> str:
    name = chosen.backbone.get('name', chosen.backbone['type'])
    size = f' on images of {chosen.size} pixels' if chosen.size else ''
    return (
        f'{name}{size}: an epoch takes about {chosen.seconds:.0f} s here, so {chosen.epochs} epochs fit into '
        f'{minutes:g} minutes.'
    )


def _config(
    table: Path, photos: Photos, chosen: Plan, tuners: list[dict[str, Any]], seed: int
) -> dict[str, Any]:
    """The config of a training, which `vet train` runs too. The linear probe sees each photo once."""
    is_probe = tuners == [dict(type='LinearProbe')]
    labels = {name: label for label, name in enumerate(photos.classes)}  # names may be numbers
    entry = dict(
        type='CSV', file=str(table.absolute()), separator=None, classes=photos.classes, label_map=labels
    )
    return dict(
        model=dict(backbone=chosen.backbone, tuners=tuners, head=dict(type='Linear')),
        dataset={split: dict(entry, split=split) for split in ('train', 'val', 'test')},
        train=dict(
            max_epochs=MOST_EPOCHS if is_probe else chosen.epochs,
            optimizer=dict(type='AdamW', lr=2e-3, weight_decay=1e-4),
            lr_scheduler=dict(warmup_epochs=min(1, chosen.epochs / 10)),
            dataloader=dict(batch_size_per_gpu=BATCH),
            transform=STILL if is_probe else AUGMENTED,
            cache_features=is_probe,
            cache_images=not is_probe,
        ),
        evaluation=dict(metrics='accuracy', select='best', before=False),
        seed=seed,
    )


def _as_file(config: dict[str, Any]) -> str:
    sections = '\n'.join(f'{key} = {pformat(value, sort_dicts=False)}' for key, value in config.items())
    return f'"""Written by vet fit. `vet train` runs this file."""\n\n{sections}\n'


def _train(folder: Path, config: dict[str, Any], options: Options) -> dict[str, Any]:
    trainer = build_trainer(model=config, work_dir=folder, seed=options.seed, device=options.device)
    return trainer.train()
