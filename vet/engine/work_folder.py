"""WorkFolder: what one training run writes, who may go on from it, and how it is known to be finished.

config.json, environment.json, log.jsonl, tensorboard/, checkpoints/step-…/, predictions.npz (of the test split), output/ (the
model folder), curves.png and, last of all, summary.json.
"""

import json
from pathlib import Path
from typing import Any

import torch

from vet.config import Settings
from vet.engine.checkpoint import Progress, list_checkpoints, load_checkpoint
from vet.engine.files import remove_folder, remove_temporary, write_file
from vet.errors import TrainingError, UserError


class WorkFolder:
    """One run's folder. resume: None (must hold no run), 'auto' (goes on from the newest checkpoint, if any), or the path
    of a checkpoint."""

    # settings that a resumed run may change: no weight does
    free = ('workers_per_gpu', 'log_every', 'keep', 'every_steps', 'every_epochs')

    def __init__(self, path: str | Path, resume: str | None = None):
        self.path, self.resume = Path(path), resume
        self.checkpoints, self.output = self.path / 'checkpoints', self.path / 'output'
        self._summary = self.path / 'summary.json'

    def begin(self, settings: Settings, environment: dict[str, Any] | None) -> tuple[Progress, dict[str, dict[str, torch.Tensor]]]:
        """A fresh start, or the progress and parts of the checkpoint to go on from.

        environment: written with the config; None on processes that write nothing.
        """
        config = settings.to_dict()
        found = list_checkpoints(self.checkpoints)
        if self.resume is None and (found or self._summary.exists()):
            state = 'a finished' if self._summary.exists() else 'an unfinished'
            raise TrainingError(f'{str(self.path)!r} holds {state} run; go on with --resume auto (from Python: '
                                f'resume="auto"), or give another work folder.')
        checkpoint = Path(self.resume) if self.resume not in (None, 'auto') else found[-1] if found else None
        if checkpoint:
            self._check_config(config)
        start = load_checkpoint(checkpoint) if checkpoint else (Progress(settings.seed), {})
        if environment is not None:
            try:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f'cannot make {str(self.path)!r}: {error.strerror}; give another --work-dir.') from error
            for folder in (self.path, self.checkpoints):
                remove_temporary(folder)
            self._summary.unlink(missing_ok=True)
            for later in found:     # than the one the user goes back to: the next --resume auto must not find it
                if checkpoint and later.name > checkpoint.name:
                    remove_folder(later)
            write_file(self.path / 'config.json', json.dumps(config, indent=1))
            write_file(self.path / 'environment.json', json.dumps(environment, indent=1))
        return start

    def finished(self, settings: Settings) -> dict[str, Any] | None:
        """The summary of a finished run that `resume` asks to see; None where there is still something to do."""
        if self.resume != 'auto' or not self._summary.is_file():
            return None
        self._check_config(settings.to_dict())
        return json.loads(self._summary.read_text())

    def finish(self, summary: dict[str, Any]) -> None:
        """The last thing a run writes."""
        write_file(self._summary, json.dumps(summary, indent=1))

    def _check_config(self, config: dict[str, Any]) -> None:
        path = self.path / 'config.json'
        begun = json.loads(path.read_text()) if path.is_file() else config
        changed = sorted(name for name in _differences(begun, json.loads(json.dumps(config)))
                         if name.rpartition('.')[2] not in self.free)
        if changed:
            raise TrainingError(f'the run in {str(self.path)!r} was begun with another config: {", ".join(changed)} differ. '
                                f'Resume with its own ({path}), or begin anew in another work folder.')


def _differences(a: Any, b: Any, path: str = '') -> set[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return {found for key in {*a, *b} for found in _differences(a.get(key), b.get(key), f'{path}.{key}'.lstrip('.'))}
    return set() if a == b else {path}
