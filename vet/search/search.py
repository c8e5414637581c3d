"""Tries candidates by asynchronous successive halving (Li et al. 2018, arXiv:1810.05934), with Optuna.

Every trial has the schedule of a whole training. After a ninth and after a third of the epochs, a trial ends
if the trial is not among the best third. Optuna's journal, a file in the run's folder, holds all trials, so a
search that was killed goes on.
"""

import copy
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import TrialState

from vet.builders import build_trainer
from vet.engine.evaluate import is_lower_better
from vet.errors import DivergedError, UserError
from vet.files import write_file
from vet.hooks.base import Hook
from vet.hooks.runner import Runner
from vet.log import say
from vet.search.candidates import Candidate

REDUCTION = 3
CANDIDATE = 'candidate'
RATE = 'learning rate of'
Config = dict[str, Any]


@dataclass(frozen=True)
class Tried:
    """A trial. value: of the first metric on the validation images after the trial's last epoch.

    epochs: how many epochs the trial took. is_whole: whether the trial took all epochs.
    numbers: how many numbers train, the head's included. seconds: of the training.
    """

    candidate: str
    rate: float
    value: float
    epochs: int
    is_whole: bool
    numbers: int
    seconds: float


@dataclass(frozen=True)
class Ended:
    """How a trial ended. value: of a whole training. says: all in words."""

    state: TrialState
    value: float | None
    says: str


class Search:
    """A search in a folder. base: all settings of a training, whose tuner and learning rate are replaced.

    first: a candidate and a learning rate that are tried first, in whole. Then each candidate is tried once.
    source: the config of the search, whose plugins another process must import.
    place: device and data_root of build_trainer.
    """

    def __init__(
        self,
        folder: Path,
        base: Config,
        choices: Sequence[Candidate],
        first: tuple[str, float],
        seed: int = 0,
        source: str | None = None,
        **place: Any,
    ):
        self.folder = folder
        self.base = base
        self.source = source
        self.place = place
        self.choices = {candidate.name: candidate for candidate in choices}
        self.epochs = int(base['train']['max_epochs'])
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # vet tells which trials fail
        journal = str(folder / 'search.log')
        self.study = optuna.create_study(
            storage=optuna.storages.JournalStorage(
                JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal))
            ),
            study_name='vet tune',
            direction=self._direction(),
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=optuna.pruners.SuccessiveHalvingPruner(
                max(1, self.epochs // REDUCTION**2), reduction_factor=REDUCTION
            ),
            load_if_exists=True,
        )
        self._take_back_killed()
        if not self.study.trials:
            self._enqueue(*first)
            for candidate in choices:
                if candidate.name != first[0]:
                    self._enqueue(candidate.name, (candidate.lowest * candidate.highest) ** 0.5)

    def _direction(self) -> StudyDirection:
        metrics = self.base['evaluation']['metrics']
        return StudyDirection.MINIMIZE if is_lower_better(metrics) else StudyDirection.MAXIMIZE

    def _enqueue(self, candidate: str, rate: float) -> None:
        self.study.enqueue_trial(
            {CANDIDATE: candidate, f'{RATE} {self.choices[candidate].tuner["type"]}': rate}
        )

    def _take_back_killed(self) -> None:
        """A trial that was running when the search was killed is tried again."""
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)
            if params := trial.params or trial.system_attrs.get('fixed_params'):
                self.study.enqueue_trial(params)

    def run(self, seconds: float) -> None:
        """Tries candidates one after another, for about `seconds` with the time of earlier processes."""
        ends = self.ends(seconds)
        while self.goes_on(ends):
            trial = self.study.ask()
            ended = self.attempt(trial, *self.suggested(trial), ends if any(self.whole()) else None)
            say(ended.says)
            self.study.tell(trial, ended.value, ended.state)

    def ends(self, seconds: float, at_once: int = 1) -> float:
        """When the time is up, by time.monotonic(). at_once: how many trials ran at once before."""
        spent = sum(trial.user_attrs.get('seconds', 0) for trial in self.study.trials)
        return time.monotonic() + seconds - spent / at_once

    def goes_on(self, ends: float, running: int = 0) -> bool:
        """Whether another trial begins. Without a whole trial there is no winner, also when time is up."""
        waiting = self.study.get_trials(states=(TrialState.WAITING,))
        return ends - time.monotonic() > 1 or bool(waiting and not running and not any(self.whole()))

    def suggested(self, trial: optuna.Trial) -> tuple[Candidate, float]:
        """The candidate and the learning rate of a trial."""
        candidate = self.choices[trial.suggest_categorical(CANDIDATE, list(self.choices))]
        name = f'{RATE} {candidate.tuner["type"]}'
        return candidate, trial.suggest_float(name, candidate.lowest, candidate.highest, log=True)

    def attempt(self, trial: optuna.Trial, candidate: Candidate, rate: float, ends: float | None) -> Ended:
        """Trains a trial. ends: when time is up. None: the trial is trained in whole.

        After any error but a training that diverges, the trial stays as it is, and the next process tries the
        trial again.
        """
        folder = self.folder / 'trials' / str(trial.number)
        watch = _Watch(trial, ends)
        began = time.monotonic()
        told = f'trial {trial.number}: {candidate.name}, learning rate {rate:.2g}'
        try:
            trainer = build_trainer(
                model=trial_config(self.base, candidate.tuner, rate), work_dir=folder, **self.place
            )
            trainer.how_to_go_on = None  # the trial begins again
            watch.metric = trainer.metrics[0]
            trainer.add_hook(watch)
            summary = trainer.train()
        except DivergedError:
            says = f'{told} diverges: the loss or trained numbers are not finite'
            return Ended(TrialState.FAIL, None, says)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            trial.set_user_attr('seconds', time.monotonic() - began)
        trial.set_user_attr('epochs', watch.epochs)
        trial.set_user_attr('numbers', summary['parameters']['trainable'])
        says = f'{told}: {watch.value:.4f} after {watch.epochs} of {self.epochs} epochs'
        if watch.epochs < self.epochs:
            return Ended(TrialState.PRUNED, None, says)
        if not math.isfinite(watch.value):
            return Ended(TrialState.FAIL, None, says)
        return Ended(TrialState.COMPLETE, watch.value, says)

    def tried(self) -> Iterator[Tried]:
        """All trials that have a result, the best first: whole trials before the others."""
        found = []
        for trial in self.study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)):
            if not trial.intermediate_values:
                continue
            name = trial.params[CANDIDATE]
            found.append(
                Tried(
                    name,
                    trial.params[f'{RATE} {self.choices[name].tuner["type"]}'],
                    trial.intermediate_values[max(trial.intermediate_values)],
                    trial.user_attrs.get('epochs', 0),
                    trial.state == TrialState.COMPLETE,
                    trial.user_attrs.get('numbers', 0),
                    trial.user_attrs.get('seconds', 0.0),
                )
            )
        sign = 1 if self.study.direction == StudyDirection.MINIMIZE else -1
        yield from sorted(found, key=lambda tried: (not tried.is_whole, sign * tried.value))

    def whole(self) -> Iterator[Tried]:
        return (tried for tried in self.tried() if tried.is_whole)

    def winner(self) -> Tried:
        """The best whole trial. UserError if no trial was trained in whole."""
        if (best := next(self.whole(), None)) is None:
            raise UserError(
                'no trial was trained in whole: each trial diverged. Give the config another '
                'learning rate, or give other --tuners; then begin a search with another --out.'
            )
        return best


class _Watch(Hook):
    """Tells Optuna the result of each epoch, and stops a trial that Optuna gives up, or when time is up.

    ends: when time is up. None: the trial is trained in whole, because no other trial was.
    """

    def __init__(self, trial: optuna.Trial, ends: float | None):
        self.trial = trial
        self.ends = ends
        self.metric = ''
        self.value = float('nan')
        self.epochs = 0

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        self.epochs = runner.epoch
        self.value = metrics[self.metric]
        self.trial.report(self.value, self.epochs)
        if self.epochs == runner.max_epochs or self.ends is None:
            return
        if time.monotonic() > self.ends or self.trial.should_prune():
            runner.stop()


def with_tuner(base: Config, tuner: Config, rate: float) -> Config:
    """The config with another tuner and another learning rate."""
    config = copy.deepcopy(base)
    config['model']['tuners'] = [dict(tuner)]
    config['train']['optimizer']['lr'] = rate
    return config


def trial_config(base: Config, tuner: Config, rate: float) -> Config:
    """The config of a trial. A trial has no test images: only validation judges."""
    config = with_tuner(base, tuner, rate)
    config['dataset']['test'] = None
    config['evaluation'] |= dict(select='best', every=1, before=False, report=False)
    return config


@dataclass(frozen=True)
class Begun:
    """The facts that a search needs to continue. base, choices: see Search. choices[0] is tried first."""

    base: Config
    choices: list[Candidate]


def remember(folder: Path, asked: Config, begun: Begun | None) -> None:
    """Writes search.json. begun: None as long as the photos are prepared."""
    write_file(folder / 'search.json', json.dumps(dict(asked=asked, begun=begun and asdict(begun)), indent=1))


def remembered(folder: Path, asked: Config) -> Begun | None:
    """The search that began in `folder`, if one began. UserError if that search was asked otherwise."""
    file = folder / 'search.json'
    if not file.exists():
        return None
    try:
        before = json.loads(file.read_text())
        known = before['asked']
        begun = before['begun']
        begun = begun and Begun(begun['base'], [Candidate(**choice) for choice in begun['choices']])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f'{str(file)!r} cannot be read: it is damaged, or another version of vet wrote it. Begin the '
            'search again with another --out.'
        ) from error
    for key, value in asked.items():
        if known.get(key) != value:
            raise UserError(
                f'{str(folder)!r} holds a search with {key} {known.get(key)!r}, and now {key} is '
                f'{value!r}. Give the options of that search, or another --out.'
            )
    return begun
