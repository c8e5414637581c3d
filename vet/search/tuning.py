"""Finds the best tuner for photos or a config: prepare, search, train the winner, test once."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from vet.allowed import fits
from vet.builders import build_datasets, build_model_for, build_trainer, follow_objective
from vet.changes import modified
from vet.config import read_settings
from vet.core.multitask import Classifier
from vet.datasets.base import Datasets
from vet.engine.saving.door import check_identity, identity_of
from vet.errors import NoSiteError, UserError
from vet.files import JsonObject, write_file
from vet.fit.choices import backbone_entry, plan
from vet.fit.fitting import refuse_unfit
from vet.fit.prepared import prepared
from vet.fit.recipe import as_file, recipe, tuner_entry
from vet.fit.run_folder import LOCK, run_folder
from vet.log import say
from vet.search.candidates import Candidate, candidates
from vet.search.page import search_page
from vet.search.ray import run_on_ray
from vet.search.search import Begun, Config, Search, Tried, remember, remembered, with_tuner
from vet.seeding import seed_everything
from vet.shipped import SUFFIXES, shipped
from vet.source import find_config

FINAL = 0.15  # of the minutes: the length of one whole training on photos
OF_PHOTOS = ('backbone', 'checkpoint', 'holdout', 'group_by')
OF_CONFIGS = ('data_root', 'cfg_options')
LAUNCHERS = dict(local=Search.run, ray=run_on_ray)
SEARCH = 0.8  # of the minutes; the rest is for the winner and the test


@dataclass(frozen=True)
class Options:
    """The options of the user. See `vet tune --help`."""

    minutes: float = 10.0
    tuners: tuple[str, ...] | None = None
    backbone: str | None = None
    checkpoint: str | None = None
    holdout: float = 0.2
    group_by: str | None = None
    seed: int = 0
    device: str | None = None
    data_root: str | None = None
    launcher: str = 'local'
    cfg_options: Mapping[str, object] | None = None

    def refuse_unread(self, is_config: bool) -> None:
        """UserError for an option that the kind of data does not read."""
        unread, kind = (OF_PHOTOS, 'photos') if is_config else (OF_CONFIGS, 'a config')
        usual = Options()
        for name in unread:
            if getattr(self, name) not in (getattr(usual, name), {}):
                option = '--' + name.replace('_', '-')
                given = 'a config' if is_config else 'photos'
                raise UserError(f'{option} is for {kind}, but the data are {given}. Leave {option} out.')

    def asked(self, source: str) -> Config:
        """The options that must stay the same when a search continues: all except the time and the place."""
        given = asdict(self)
        for free in ('minutes', 'device', 'data_root', 'launcher'):
            del given[free]
        return json.loads(json.dumps(dict(data=source, **given), default=str))


@dataclass(frozen=True)
class Result:
    """tried: all trials, the best first. summary: of the winner's training, with its test metrics."""

    winner: Tried
    tried: list[Tried]
    summary: JsonObject
    metric: str
    folder: Path

    def says(self) -> str:
        winner = self.winner
        count = len(self.tried)
        test = (
            f'{self.summary[self.metric]:.4f}'
            if self.metric in self.summary
            else 'not measured (no test images)'
        )
        return (
            f'The winner of {count} trial{"s" * (count != 1)}: {winner.candidate}, '
            f'learning rate {winner.rate:.2g}. '
            f'Validation {self.metric}: {winner.value:.4f}. Test {self.metric}, read once: {test}.'
        )


def tune(source: str, run: Path, options: Options) -> Result:
    """Searches, trains the winner in whole, and tests the winner once. `run` may hold a search that goes on.

    UserError for photos or a config from which nothing can be learned.
    """
    refuse_unfit(options.minutes, options.holdout)
    options.refuse_unread(_is_config(source))
    seed_everything(options.seed)
    asked = options.asked(str(Path(source).absolute()) if Path(source).exists() else source)
    with run_folder(run, 'search.json'):
        begun = remembered(run, asked)
        if begun is None:
            begun = _begin(source, run, options, asked)
        else:
            say(f'The search in {run} goes on.')
            _refuse_changed(source, run, options, begun.base)
        return _search(source, run, options, begun)


def _search(source: str, run: Path, options: Options, begun: Begun) -> Result:
    """Tries candidates until time is up. Trains and tests the winner."""
    base = begun.base
    choices = begun.choices
    rate = float(base['train']['optimizer']['lr'])
    place: JsonObject = dict(device=options.device, data_root=options.data_root)
    config_file = source if _is_config(source) else None
    search = Search(run, base, choices, (choices[0].name, rate), options.seed, config_file, **place)
    launch = LAUNCHERS[options.launcher]
    launch(search, 60 * options.minutes * SEARCH)
    winner = search.winner()
    tried = list(search.tried())
    tuner = next(choice.tuner for choice in choices if choice.name == winner.candidate)
    config = with_tuner(base, tuner, winner.rate)
    text = as_file(config, 'vet tune')
    _forget_other_winner(run, text)
    write_file(run / 'config.py', text)
    say(f'The winner is {winner.candidate}, learning rate {winner.rate:.2g}. The winner is trained in whole.')
    trainer = build_trainer(
        model=config, work_dir=run / 'tuned', **place, resume='auto' if (run / 'tuned').exists() else None
    )
    trainer.how_to_go_on = None  # the search goes on as a whole
    summary = trainer.train()
    metric = trainer.metrics[0]
    write_file(run / 'search.html', search_page(run, metric, tried))
    return Result(winner, tried, summary, metric, run)


def _begin(source: str, run: Path, options: Options, asked: Config) -> Begun:
    """Makes the folder of a search, prepares the data, and finds the candidates that the backbone takes."""
    for path in run.iterdir():  # an earlier process was killed while it prepared the data
        if path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        others = candidates(options.tuners)
        remember(run, asked, None)
        base = _of_config(source, options) if _is_config(source) else _of_photos(Path(source), run, options)
        first = _default(base)
        others = [choice for choice in others if choice.tuner != first.tuner]
        begun = Begun(base, [first, *_fitting(first, others, base, run, options)])
    except UserError:
        shutil.rmtree(run)
        raise
    remember(run, asked, begun)
    return begun


def _refuse_changed(source: str, run: Path, options: Options, base: Config) -> None:
    """UserError if the config, the images or the weights have changed since the search began."""
    if _is_config(source):
        now = _of_config(source, options)  # imports the plugins that the config names, too
        now['evaluation']['metrics'] = now['evaluation']['metrics'] or base['evaluation']['metrics']
        if changed := [section for section in now if now[section] != base.get(section)]:
            raise UserError(
                f'{source} has changed since the search in {str(run)!r} began: {", ".join(changed)} differ. '
                'Restore the config, or give another --out.'
            )
    settings = read_settings(base)
    data = build_datasets(settings, options.data_root)
    check_identity(run, _identity(build_model_for(settings, data['train']), data))


def _identity(model: Classifier, data: Datasets) -> JsonObject:
    """The identity of a search. The search may not read the test images."""
    return identity_of(model, {split: dataset for split, dataset in data.items() if split != 'test'})


def _forget_other_winner(run: Path, text: str) -> None:
    """Removes the training of an earlier winner, after a search that went on has found another winner."""
    if (run / 'tuned').exists() and (run / 'config.py').read_text() != text:
        say(
            'The search went on and has another winner. The test images were read before, for the earlier '
            'winner: the second test result is a little too good.'
        )
        shutil.rmtree(run / 'tuned')


def _is_config(source: str) -> bool:
    return Path(source).suffix in SUFFIXES or (not Path(source).exists() and source in shipped('configs'))


def _of_config(source: str, options: Options) -> Config:
    """All settings of a config. UserError for a config whose learning rate has several places."""
    settings = read_settings(modified(find_config(source), None, options.cfg_options))
    if settings.train.stages:
        raise UserError(
            f'{source} has train.stages, and each stage has a learning rate. vet tune searches one learning '
            'rate. Leave train.stages out.'
        )
    if len(settings.model.tuners) != 1 or settings.model.tasks:
        raise UserError(
            f'{source} has several tuners or several tasks. vet tune searches one tuner for one task: give a '
            'config with one entry in model.tuners.'
        )
    settings.train.early_stop = None
    return json.loads(json.dumps(settings.to_dict()))


def _of_photos(source: Path, run: Path, options: Options) -> Config:
    """The settings of a training of a default length on photos, which are divided once."""
    backbone = backbone_entry(options.backbone, options.checkpoint)
    tuners = [tuner_entry('auto')]
    photos = prepared(source, run, group_by=options.group_by)
    splits = photos.divided(options.holdout, options.seed)
    photos.write_check(run / 'check.html')
    counts = Counter(splits)
    say(
        f'{counts["train"]:,} images to learn from, {counts["val"]:,} to judge the candidates, '
        f'{counts["test"]:,} to test the winner once. {photos.says_what_is_apart(splits)}'
    )
    photos.write_table(run / 'photos.csv', splits)
    classes = photos.photos.classes
    chosen = plan(backbone, tuners, classes, counts['train'], options.minutes * FINAL, options.device)
    config = recipe(run / 'photos.csv', classes, chosen, tuners, options.seed)
    return json.loads(json.dumps(read_settings(config).to_dict()))


def _default(base: Config) -> Candidate:
    """The tuner of the config, with a range of rates around the config's rate."""
    entry = dict(base['model']['tuners'][0])
    rate = base['train']['optimizer']['lr']
    if not (fits(rate, float) and rate > 0):
        raise UserError(
            f'train.optimizer.lr is {rate!r}; vet tune needs a learning rate above 0 to begin with.'
        )
    words = ', '.join(f'{key}={value!r}' for key, value in entry.items() if key != 'type')
    known = candidates([entry['type']])[0]
    return Candidate(f'{entry["type"]}({words})', entry, min(known.lowest, rate), max(known.highest, rate))


def _fitting(
    first: Candidate, others: list[Candidate], base: Config, run: Path, options: Options
) -> list[Candidate]:
    """The other candidates that the backbone takes. Those that are left out are named.

    Writes identity.json. Sets the metrics of `base` to those of the objective, if `base` has none. UserError
    if the backbone does not take the first candidate.
    """
    settings = read_settings(base)
    data = build_datasets(settings, options.data_root)
    settings.model.tuners = [dict(first.tuner)]
    model = build_model_for(settings, data['train'])
    write_file(run / 'identity.json', json.dumps(_identity(model, data), indent=1))
    follow_objective(settings, model)
    if settings.evaluation.metrics is None:
        raise UserError(
            'the tasks have different metrics, so that no metric can judge the candidates. Give '
            'evaluation.metrics, whose first metric judges.'
        )
    base['evaluation']['metrics'] = list(settings.evaluation.metrics)
    taken = []
    for choice in others:
        settings.model.tuners = [dict(choice.tuner)]
        try:
            build_model_for(settings, data['train'])
        except NoSiteError as error:
            say(f'{choice.name} is left out: {error}')
        else:
            taken.append(choice)
    return taken
