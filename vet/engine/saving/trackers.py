"""The trackers of a run (train.trackers), such as mlflow and wandb, through accelerate."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from vet.errors import UserError
from vet.files import JsonObject, read_json, write_file
from vet.log import warn

IDS = 'trackers.json'
# the trackers that can continue their run: the argument for its id, and the place of the id
RESUMES: Mapping[str, tuple[str, Callable[[Any], str]]] = dict(
    mlflow=('run_id', lambda tracker: tracker.tracker.info.run_id),
    wandb=('id', lambda tracker: tracker.tracker.id),
)
PACKAGES = dict(comet='comet_ml')  # the package of a tracker, which is accelerate's name too
ALLOWED = re.compile(r'[^\w\-. /]')  # not allowed in a name of mlflow


class Trackers:
    """Sends the config and the numbers of a run to each tracker of `names`. Only the main process may do so.

    Where a tracker writes is for the settings of the tracker, such as MLFLOW_TRACKING_URI and WANDB_MODE.
    If a tracker fails later, the run continues without the tracker, and a warning says so.
    folder: the work folder. config: the settings, as nested dicts. is_resumed: whether the run continues.
    UserError if a tracker is not installed, or cannot begin.
    """

    def __init__(self, names: Iterable[str], folder: Path, config: JsonObject, is_resumed: bool):
        self._running: dict[str, Any] = {}
        path = folder / IDS
        known = read_json(path) if is_resumed and path.is_file() else {}
        for name in dict.fromkeys(PACKAGES.get(name, name) for name in names):
            try:
                self._running[name] = _begun(name, folder, known.get(name))
            except UserError:
                self.finish()  # so that a later run of this process can begin
                raise
            if name not in known:
                self._try(name, 'begins', lambda tracker: tracker.store_init_configuration(flat(config)))
        ids = {name: RESUMES[name][1](self._running[name]) for name in self._running if name in RESUMES}
        if ids:
            write_file(path, json.dumps(ids))

    def log(self, step: int, numbers: Mapping[str, object]) -> None:
        """Sends the numbers of `numbers`. Other values are left out."""
        named = {
            ALLOWED.sub('_', name): value
            for name, value in numbers.items()
            if isinstance(value, int | float) and name not in ('step', 'epoch')
        }
        for name in list(self._running) if named else ():
            self._try(name, f'fails at step {step}', lambda tracker: tracker.log(named, step=step))

    def finish(self) -> None:
        """Ends the run of each tracker."""
        for name in list(self._running):
            self._try(name, 'fails at the end', lambda tracker: tracker.finish())
        self._running.clear()

    def _try(self, name: str, what: str, function: Callable[[Any], object]) -> None:
        try:
            function(self._running[name])
        except Exception as error:  # of the tracker's library, which may raise any error
            with suppress(Exception):
                self._running.pop(name).finish()  # so that a later run of this process can begin
            warn(
                f'warning: the tracker {name!r} {what}: {type(error).__name__}: {error}. The run continues '
                'without the tracker; log.jsonl has all numbers.'
            )


def require_trackers(names: Iterable[str]) -> None:
    """UserError for a tracker whose package is not installed."""
    installed = {str(kind) for kind in get_available_trackers()}
    for name in names:
        package = PACKAGES.get(name, name)
        if package not in installed:
            raise UserError(
                f'train.trackers names {name!r}, but the package {package} is not installed here. Install '
                f'the package, or choose from those that are: {", ".join(sorted(installed)) or "none"}.'
            )


def flat(config: Mapping[str, object], above: str = '') -> dict[str, object]:
    """{'train.optimizer.lr': 0.002, …}. Lists become texts."""
    found: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f'{above}{key}.')
        else:
            found[f'{above}{key}'] = value if isinstance(value, int | float | str) else str(value)
    return found


def _begun(name: str, folder: Path, known: str | None) -> Any:
    """The tracker of accelerate, which has begun. known: the id of the run to continue."""
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    given: dict[str, Any] = {}
    if kind.requires_logging_directory:
        given['logging_dir'] = folder / 'trackers'
    if known is not None:
        given[RESUMES[name][0]] = known
    try:
        tracker = kind('vet', **given)
        tracker.start()
        return tracker
    except Exception as error:  # of the tracker's library, which may raise any error
        raise UserError(
            f'the tracker {name!r} cannot begin: {type(error).__name__}: {error}. Correct the settings '
            'of the tracker, or take the tracker out of train.trackers.'
        ) from error
