"""WorkFolder: the files of one training run. Decides who may continue the run, and whether the run is
finished.

The files are config.json, environment.json, identity.json, log.jsonl, tensorboard/, checkpoints/step-…/,
predictions.npz and predictions.csv (of the test split), output/ (the model folder), curves.png, report.html
and, last of all, summary.json. A lock on the file .lock keeps a second run out.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from vet.config import Settings
from vet.engine.saving.checkpoint import (
    NewerError,
    Progress,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from vet.engine.saving.same_run import check_config, check_identity, refuse_older_entries, tell_of_device
from vet.errors import DataError, TrainingError, UserError
from vet.files import JsonObject, read_json, remove_folder, remove_temporary, write_file
from vet.lock import FileLock
from vet.log import warn

Parts = dict[str, dict[str, torch.Tensor]]
FILES = (
    'config.json',
    'environment.json',
    'identity.json',
    'log.jsonl',
    'predictions.npz',
    'predictions.csv',
    'report.html',
    'curves.png',
    'summary.json',
    'example.png',
    'trackers.json',
)
FOLDERS = ('checkpoints', 'output', 'tensorboard', 'trackers')


class WorkFolder:
    """The folder of one run.

    resume: None (the folder must hold no run), 'auto' (continues from the newest whole checkpoint, if there
        is one), or the path of a checkpoint.
    is_new: whether the folder must be new. If the name is taken, a number is added to it.
    """

    def __init__(self, path: str | Path, resume: str | None = None, is_new: bool = False):
        self.path = Path(path)
        self.resume = resume
        self.is_new = is_new
        self._lock: FileLock | None = None
        self._chosen: tuple[Progress, Parts] | None = None  # of the checkpoint that `begin` has chosen

    @property
    def checkpoints(self) -> Path:
        return self.path / 'checkpoints'

    @property
    def output(self) -> Path:
        return self.path / 'output'

    def begin(
        self, settings: Settings, identity: Mapping[str, object], environment: Mapping[str, object]
    ) -> Path | None:
        """Locks the folder and prepares it. Only one process calls this.

        Returns the checkpoint to continue from. None: a fresh start.
        identity: see `identity_of`. environment: a dict that is written beside the config.
        """
        self._make()
        self._refuse_occupied()
        config = settings.to_dict()
        checkpoints = list_checkpoints(self.checkpoints)
        checkpoint = self._choose(checkpoints)
        if checkpoint:
            begun = checkpoint.absolute().parents[1]
            is_longer = check_config(begun, config)
            check_identity(begun, identity)
            tell_of_device(begun, environment)
            refuse_older_entries(checkpoint, config)
            if is_longer:
                self._begin_longer(settings)
        try:
            self._clear(checkpoints, checkpoint)
            write_file(self.path / 'environment.json', json.dumps(environment, indent=1))
            write_file(self.path / 'config.json', json.dumps(config, indent=1))
            if not checkpoint or not (self.path / 'identity.json').exists():
                write_file(self.path / 'identity.json', json.dumps(identity, indent=1))
        except OSError as error:
            raise UserError(
                f'cannot write in {str(self.path)!r}: {error.strerror}; give another --work-dir.'
            ) from error
        return checkpoint

    def load(self, checkpoint: Path | None, settings: Settings) -> tuple[Progress, Parts]:
        """The progress and parts of the checkpoint to continue from, or those of a fresh start."""
        if not checkpoint:
            return Progress(settings.seed), {}
        chosen = self._chosen
        self._chosen = None
        return chosen or load_checkpoint(checkpoint)

    def save(self, progress: Progress, parts: Mapping[str, Mapping[str, torch.Tensor]], keep: int) -> None:
        """Writes a checkpoint. TrainingError if the folder was moved or removed since `begin`."""
        if self._lock and not self._lock.is_in_place():
            raise TrainingError(
                f'{str(self.path)!r} was moved, removed or replaced while the run wrote there. Put the '
                'folder back, then continue with --resume auto; without the folder, begin anew.'
            )
        save_checkpoint(self.checkpoints, progress, parts, keep)

    def finished(self, settings: Settings, identity: Callable[[], Mapping[str, object]]) -> JsonObject | None:
        """The summary of a finished run, if `resume` is 'auto'. None: there is work left to do."""
        path = self.path / 'summary.json'
        if self.resume != 'auto' or not path.is_file():
            return None
        if check_config(self.path, settings.to_dict()):
            return None
        check_identity(self.path, identity())
        try:
            summary = read_json(path)
            if isinstance(summary, dict) and {'parameters', 'selected', 'output'} <= set(summary):
                return summary
        except DataError:
            pass
        warn(f'{str(path)!r} is damaged. The run ends once more, from its newest checkpoint.')
        return None

    def finish(self, summary: JsonObject) -> None:
        """Writes the last file of a run."""
        write_file(self.path / 'summary.json', json.dumps(summary, indent=1))

    def close(self) -> None:
        """Releases the lock, so that other runs may use the folder."""
        if self._lock:
            self._lock.release()

    def how_to_continue(self) -> str:
        """A text: what was saved, and how to continue from there."""
        checkpoints = list_checkpoints(self.checkpoints)
        if not checkpoints:
            return 'No checkpoint was written yet: correct the cause, then begin again.'
        return (
            f'Nothing that was saved before is lost: the newest checkpoint is {str(checkpoints[-1])!r}. '
            'Correct the cause, then continue with --resume auto (from Python: resume="auto").'
        )

    def _make(self) -> None:
        """Makes the folder, and locks it."""
        try:
            wanted = self.path
            count = 1
            while self.is_new:
                try:
                    self.path.mkdir(parents=True)
                    break
                except FileExistsError:
                    count += 1
                    self.path = wanted.with_name(f'{wanted.name}-{count}')
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / '.lock')
            is_free = lock.acquire(wait=False)
        except OSError as error:
            raise UserError(
                f'cannot write in {str(self.path)!r}: {error.strerror}; give another --work-dir.'
            ) from error
        if not is_free:
            raise TrainingError(
                f'another run writes in {str(self.path)!r} now. Wait until it ends, or give another work '
                'folder (--work-dir).'
            )
        if not lock.is_real:
            warn(
                f'the file system of {str(self.path)!r} has no locks. Make sure that no other run writes '
                'there.'
            )
        self._lock = lock

    def _refuse_occupied(self) -> None:
        """Refuses files that a run must not write over, and files that would stop the run from writing at
        its end.
        """
        for name in (*FILES, *FOLDERS):
            path = self.path / name
            if path.is_symlink():
                raise TrainingError(
                    f'{str(path)!r} is a link, and a run would write where the link leads. Replace the link '
                    'by the file or folder it leads to, or make the whole work folder a link.'
                )
            if path.exists() and path.is_dir() != (name in FOLDERS):
                kind, right = ('folder', 'file') if path.is_dir() else ('file', 'folder')
                raise TrainingError(
                    f'{str(path)!r} is a {kind}, but a run writes a {right} of that name. Give another work '
                    f'folder.'
                )
        begun = list_checkpoints(self.checkpoints)
        is_finished = (self.path / 'summary.json').exists()
        if self.resume is None and (begun or is_finished):
            state = 'a finished' if is_finished else 'an unfinished'
            raise TrainingError(
                f'{str(self.path)!r} holds {state} run; continue with --resume auto (from Python: '
                f'resume="auto"), or give another work folder.'
            )
        if begun and self.resume and Path(self.resume).resolve() == self.path.resolve():
            self.resume = 'auto'  # a user may name the run in place of a checkpoint
        chooses = self.resume not in (None, 'auto')
        is_own = chooses and Path(self.resume or '').resolve().parent == self.checkpoints.resolve()
        if chooses and not is_own and (begun or is_finished):
            raise TrainingError(
                f'{str(self.path)!r} holds a run, and the checkpoint {str(self.resume)!r} is of another run. '
                'Give another work folder for that checkpoint, or continue the run of this folder: --resume '
                'auto.'
            )
        if begun or is_finished or is_own:
            return
        foreign = [self.output] if self.output.is_dir() and any(self.output.iterdir()) else []
        if (self.path / 'config.json').exists() and not (self.path / 'environment.json').exists():
            foreign.append(self.path / 'config.json')
        if foreign:
            raise TrainingError(
                f'{str(foreign[0])!r} is not from a run in this folder, and a run would write over it. Give '
                f'another work folder.'
            )

    def _choose(self, checkpoints: list[Path]) -> Path | None:
        """The checkpoint to continue from: the user's choice, or the newest whole checkpoint."""
        if self.resume is None:
            return None
        if self.resume != 'auto':
            self._chosen = load_checkpoint(Path(self.resume))
            return Path(self.resume)
        damages = []
        for checkpoint in reversed(checkpoints):
            try:
                self._chosen = load_checkpoint(checkpoint)
            except NewerError:
                raise
            except DataError as error:
                damages.append(error)
                continue
            if damages:
                warn(f'{damages[0]} The run continues from {str(checkpoint)!r}, which is whole.')
            return checkpoint
        if damages:
            raise DataError(
                f'no checkpoint in {str(self.checkpoints)!r} is whole. {damages[0]} Or begin anew in another '
                'work folder.'
            ) from damages[0]
        return None

    def _clear(self, checkpoints: list[Path], checkpoint: Path | None) -> None:
        """Removes unfinished files of an ended process, and the checkpoints after the chosen checkpoint.

        The next --resume auto must not find these. A damaged checkpoint is kept under another name.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.checkpoints):
            remove_temporary(folder)
        (self.path / 'summary.json').unlink(missing_ok=True)
        for later in checkpoints:
            if checkpoint and int(later.name[5:]) > int(checkpoint.name[5:]):
                try:
                    load_checkpoint(later)
                    remove_folder(later)
                except UserError:
                    later.rename(_free_name(later.with_name(f'{later.name}.damaged')))

    def _begin_longer(self, settings: Settings) -> None:
        """Says what a larger train.max_epochs means for the run.

        TrainingError if the run has stopped before its last epoch.
        """
        assert self._chosen is not None
        progress = self._chosen[0]
        epochs = settings.train.max_epochs
        if progress.stopped:
            raise TrainingError(
                f'train.max_epochs is {epochs}, larger than before, but the run in {str(self.path)!r} was '
                f'stopped after step {progress.step}, by train.early_stop or by a hook. A stopped run stays '
                'stopped. To train further, begin a run from the model folder, '
                f'{str(self.output)!r}, with model.finetune=False.'
            )
        schedule = settings.train.lr_scheduler
        warn(
            f'the run continues after step {progress.step}, now to epoch {epochs}. From there on, the '
            f'learning rate is that of a run of {epochs} epochs ({schedule.type}, T_max={schedule.T_max}): '
            'it may be larger than at the end of the shorter run.'
        )


def _free_name(path: Path) -> Path:
    count = 1
    free = path
    while free.exists():
        count += 1
        free = path.with_name(f'{path.name}-{count}')
    return free
