"""Makes a tuned model from photos, and a sentence about its accuracy: read, divide, choose, train, report."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from scipy.stats import binomtest

from vet.builders import build_trainer
from vet.config import Plugin
from vet.errors import UserError
from vet.files import JsonObject, write_file
from vet.fit.choices import LEAST_EPOCHS, Plan, backbone_entry, plan
from vet.fit.prepared import Prepared, prepared
from vet.fit.recipe import PROBE, as_file, recipe, tuner_entry
from vet.fit.run_folder import run_folder
from vet.log import say
from vet.seeding import seed_everything

MOST_FOLDS = 20


@dataclass(frozen=True)
class Options:
    """The options of the user. See `vet fit --help`."""

    backbone: str | None = None
    checkpoint: str | None = None
    minutes: float = 10.0
    tuner: str = 'auto'
    holdout: float = 0.2
    folds: int | None = None
    group_by: str | None = None
    strict: bool = False
    seed: int = 0
    device: str | None = None

    def check(self) -> None:
        refuse_unfit(self.minutes, self.holdout)
        if self.folds is not None and not 2 <= self.folds <= MOST_FOLDS:
            raise UserError(f'--folds is {self.folds}; give 2 to {MOST_FOLDS}, such as 5.')


@dataclass(frozen=True)
class Tested:
    """The right answers among `images` test images: of the tuned model, the probe, and the frequent class."""

    right: int
    probe: int
    majority: int
    images: int

    def __add__(self, other: 'Tested') -> 'Tested':
        return Tested(*map(sum, zip(astuple(self), astuple(other))))


@dataclass(frozen=True)
class Result:
    """The result of `fit`.

    folds: the accuracy of each fold. folder: of the run.
    validation: {'tuned' or 'probe': its accuracy on the images to choose by}.
    interval: Wilson's 95 % interval of the accuracy.
    """

    tested: Tested
    folds: Sequence[float]
    folder: Path
    validation: Mapping[str, float]

    @property
    def accuracy(self) -> float:
        return self.tested.right / self.tested.images

    @property
    def interval(self) -> tuple[float, float]:
        found = binomtest(self.tested.right, self.tested.images).proportion_ci(method='wilson')
        return found.low, found.high

    @property
    def model(self) -> Path:
        """The folder of the model that is better on the images to choose by. If both are as good, tuned/."""
        is_probe = self.validation.get('probe', 0) > self.validation.get('tuned', 0)
        return self.folder / ('probe' if is_probe else 'tuned')

    def says(self) -> str:
        tested = self.tested
        (low, high) = self.interval
        text = (
            f'{100 * self.accuracy:.1f} % of {tested.images:,} test images are right (95 % interval '
            f'{100 * low:.1f} to {100 * high:.1f} %). The linear probe: '
            f'{100 * tested.probe / tested.images:.1f} %. Always the most frequent class: '
            f'{100 * tested.majority / tested.images:.1f} %.'
        )
        if self.folds:
            each = ', '.join(f'{100 * accuracy:.1f}' for accuracy in self.folds)
            text += (
                f' Each of {len(self.folds)} trainings was tested on another part of the photos: {each} %. '
                'The model in tuned/ has learned from all photos but those it was chosen by, so no photo '
                'tests that model itself.'
            )
        if self.model.name == 'probe':
            text += (
                ' On the images to choose by, the linear probe is better '
                f'({100 * self.validation["probe"]:.1f} % against {100 * self.validation["tuned"]:.1f} %). '
                'Use probe/, or give more --minutes.'
            )
        return text


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
    tuners = [tuner_entry(options.tuner)]
    with run_folder(run):
        return _fit(source, run, options, backbone, tuners)


def _fit(source: Path, run: Path, options: Options, backbone: Plugin, tuners: list[Plugin]) -> Result:
    try:
        photos = prepared(source, run, options.strict, options.group_by)
        splits = _splits(photos, options)
        photos.write_check(run / 'check.html')
        minutes = options.minutes / len(splits)
        learned = Counter(splits[0])['train']
        chosen = plan(backbone, tuners, photos.photos.classes, learned, minutes, options.device)
    except UserError:
        shutil.rmtree(run)
        raise
    say(_says(chosen, options.minutes, len(splits)))
    trainings = [_Training(photos, split, chosen, tuners, options) for split in splits]
    of_folds = [
        each.run(run / f'fold-{number}', left=len(splits) - number)[0]
        for number, each in enumerate(trainings[:-1], 1)
    ]
    tested, validation = trainings[-1].run(run, last=True)
    if of_folds:
        tested = sum(of_folds[1:], of_folds[0])
    return Result(tested, [fold.right / fold.images for fold in of_folds], run, validation)


def _splits(photos: Prepared, options: Options) -> list[list[str]]:
    """The splits of each training. With folds, the last training has no test photos."""
    if options.folds is None:
        splits = [photos.divided(options.holdout, options.seed)]
        begin = ''
    else:
        folds = photos.folds(options.folds, options.holdout, options.seed)
        splits = [*folds, ['train' if split == 'test' else split for split in folds[-1]]]
        begin = f'{options.folds} trainings, each tested on another part of the photos. The first: '
    counts = Counter(splits[0])
    say(
        f'{begin}{counts["train"]:,} images to learn from, {counts["val"]:,} to choose by, '
        f'{counts["test"]:,} to report on. {photos.says_what_is_apart(splits[0])}'
    )
    return splits


@dataclass(frozen=True)
class _Training:
    """One training on one division of the photos."""

    photos: Prepared
    splits: list[str]
    chosen: Plan
    tuners: list[Plugin]
    options: Options

    def run(self, folder: Path, last: bool = False, left: int = 0) -> tuple[Tested, dict[str, float]]:
        """Trains the linear probe and the tuners. left: how many trainings come after this training.

        Also returns {'tuned' or 'probe': the accuracy on the images to choose by}. Without test images, there
        is no probe.
        """
        folder.mkdir(exist_ok=True)
        table = folder / 'photos.csv'
        self.photos.write_table(table, self.splits)
        labels = self.photos.labels
        of_test = Counter(label for label, split in zip(labels, self.splits) if split == 'test')
        learned = Counter(label for label, split in zip(labels, self.splits) if split == 'train')
        seconds = self.chosen.seconds * self.chosen.epochs * (left + 1)
        say(f'Training: about {_duration(seconds)} left.')
        probe = self._train(folder / 'probe', self._config(table, PROBE)) if of_test else {}
        config = self._config(table, self.tuners)
        if last:
            write_file(folder / 'config.py', as_file(config, 'vet fit'))
        summary = self._train(folder / 'tuned', config)
        images = of_test.total()
        tested = Tested(
            round(summary.get('accuracy', 0) * images),
            round(probe.get('accuracy', 0) * images),
            of_test[learned.most_common(1)[0][0]],
            images,
        )
        summaries = dict(tuned=summary, probe=probe)
        return tested, {name: each['validation'] for name, each in summaries.items() if 'validation' in each}

    def _config(self, table: Path, tuners: list[Plugin]) -> JsonObject:
        config = recipe(table, self.photos.photos.classes, self.chosen, tuners, self.options.seed)
        for split in ('val', 'test'):
            if split not in self.splits:
                config['dataset'][split] = None
        return config

    def _train(self, folder: Path, config: JsonObject) -> JsonObject:
        options = self.options
        trainer = build_trainer(model=config, work_dir=folder, seed=options.seed, device=options.device)
        trainer.how_to_go_on = None  # the command says how a fit goes on
        return trainer.train()


def refuse_unfit(minutes: float, holdout: float) -> None:
    """UserError for minutes or a share of test images that have no meaning."""
    if not 0.01 <= holdout <= 0.5:
        raise UserError(f'--holdout is {holdout:g}; give a share of 0.01 to 0.5, such as 0.2.')
    if not 0 < minutes <= 60 * 24 * 30:
        raise UserError(f'--minutes is {minutes:g}; give a number above 0, such as 10.')


def _says(chosen: Plan, minutes: float, trainings: int) -> str:
    name = chosen.backbone.get('name', chosen.backbone['type'])
    size = f' on images of {chosen.size} pixels' if chosen.size else ''
    times = f'{trainings} times {chosen.epochs}' if trainings > 1 else str(chosen.epochs)
    weak = ' So few epochs make a weak model: give more --minutes.' if chosen.epochs < LEAST_EPOCHS else ''
    return (
        f'{name}{size}: an epoch takes about {chosen.seconds:.0f} s here, so {times} epochs fit into '
        f'{minutes:g} minutes.{weak}'
    )


def _duration(seconds: float) -> str:
    return f'{seconds / 60:.0f} minutes' if seconds >= 90 else f'{max(seconds, 1):.0f} s'
