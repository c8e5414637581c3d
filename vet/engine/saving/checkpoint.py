"""Checkpoints: the trained tensors, the optimizer's state and the progress of a run, as tensors and JSON in a
folder.

`step-00000120/state.safetensors` holds tensors under 'model.', 'tuners.', 'optimizer.', 'ema.' and 'best.'.
`progress.json` holds the rest. Every random draw is a function of the seed and the step (see seeding), so
these two are the whole random state.

progress.json has the sha256 of the tensor file and of its own values. So vet notices a damaged checkpoint.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

import vet
from vet.core.tensor_file import read_tensors, sha256_of
from vet.errors import DataError, TrainingError
from vet.files import publish_folder, read_json, remove_folder, write_file, writing
from vet.optimizers.two_points import in_training

TENSORS = 'state.safetensors'
PROGRESS = 'progress.json'
OPTIONS = ('params', 'lr', 'weight_decay')  # of a group, beside its counters
FORMAT = 3  # of progress.json: 2 has no routes, 1 older entries of tuners (core/meanings.py), 0 no sha256


class NewerError(TrainingError):
    """A newer version of vet wrote the run, in a way that this version cannot read."""


@dataclass
class Progress:
    """The state of a run after `step` optimizer steps."""

    seed: int
    step: int = 0
    processes: int = 1  # the processes that share a global batch
    log_bytes: int = 0  # the log's length; a resumed run cuts the log back to this length
    best: float | None = None  # the best validation result so far, and its epoch
    best_epoch: int = 0
    stopped: bool = False  # whether the run stopped early
    train_seconds: float = 0.0
    before: dict[str, float] | None = None  # the test result before step 0
    pending: bool = False  # whether an epoch has ended, but its validation is not done
    meter: list[float] = field(default_factory=list)  # counts for the next record; see Meter.state
    hooks: list[Any] = field(default_factory=list)  # the state of each hook
    routes: Mapping[str, str] | None = None  # of low-rank updates, by module; an older vet had none


def save_checkpoint(
    folder: Path, progress: Progress, parts: Mapping[str, Mapping[str, torch.Tensor]], keep: int
) -> None:
    """Publishes `folder/step-…`, then removes all but the newest `keep`.

    parts: {'model': named tensors, 'optimizer': named tensors, …}.
    """
    tensors = {
        f'{owner}.{name}': tensor.detach().cpu().contiguous().clone()
        for owner, named in parts.items()
        for name, tensor in named.items()
    }

    def fill(temporary: Path) -> None:
        data = save(tensors)
        write_file(temporary / TENSORS, data)
        values = dict(asdict(progress), format=FORMAT, vet=vet.__version__, sha256={TENSORS: sha256_of(data)})
        write_file(temporary / PROGRESS, json.dumps(values | dict(checksum=checksum(values)), indent=1))

    publish_folder(folder / f'step-{progress.step:08d}', fill)
    with writing(folder):
        for old in list_checkpoints(folder)[:-keep]:
            remove_folder(old)


def checksum(values: Mapping[str, object]) -> str:
    """The sha256 of all values of a progress.json except the checksum itself."""
    return sha256_of(
        json.dumps({key: values[key] for key in sorted(values) if key != 'checksum'}, sort_keys=True).encode()
    )


def has_older_entries(path: Path) -> bool:
    """Whether the tuners of a checkpoint may mean something else today."""
    values = read_json(path / PROGRESS)
    return isinstance(values, dict) and values.get('format', 0) < 2


def load_checkpoint(path: Path) -> tuple[Progress, dict[str, dict[str, torch.Tensor]]]:
    """The progress and the parts of a checkpoint.

    DataError if a file is missing or damaged. NewerError for a checkpoint of a newer vet.
    """
    try:
        progress, sha256 = _load_progress(path / PROGRESS)
        tensors = read_tensors(path / TENSORS, '', sha256)
    except DataError as error:
        raise DataError(
            f'the checkpoint {str(path)!r} cannot be read: {str(error).rstrip()} Give another '
            f'checkpoint with --resume PATH; a checkpoint is a folder step-… with {TENSORS} and {PROGRESS}.'
        ) from error
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        owner, _, rest = name.partition('.')
        parts.setdefault(owner, {})[rest] = tensor
    return progress, parts


def _load_progress(path: Path) -> tuple[Progress, str | None]:
    """The values of progress.json, and the sha256 of the tensor file.

    None: the file is older than checksums.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise DataError(f'{str(path)!r} holds no JSON object.')
    made_by, form = values.get('vet'), values.get('format', 0)
    if isinstance(form, int) and form > FORMAT:
        raise NewerError(
            f'{str(path)!r} was written by a newer version of vet ({made_by}; this is {vet.__version__}). '
            'Update vet, then continue with --resume auto.'
        )
    given = dict(values)
    digests = [given.pop(key, None) for key in ('vet', 'format', 'sha256', 'checksum')][2:]
    try:
        if form and digests[1] != checksum(values):
            raise DataError(f'{str(path)!r} is damaged: its values do not fit its checksum.')
        progress = Progress(**given)
        if not all(type(number) is int and number >= 0 for number in (progress.step, progress.log_bytes)):
            raise DataError(
                f'{str(path)!r} is damaged: step is {progress.step!r}, log_bytes {progress.log_bytes!r}.'
            )
        return progress, digests[0][TENSORS] if form else None
    except (TypeError, KeyError) as error:
        raise DataError(f'{str(path)!r} is damaged: {error}.') from error


def list_checkpoints(folder: Path) -> list[Path]:
    """The published checkpoints in a folder, oldest first."""
    checkpoints = (path for path in folder.glob('step-*') if re.fullmatch(r'step-\d+', path.name))
    return sorted(checkpoints, key=lambda path: int(path.name.partition('-')[2]))


def optimizer_state(
    optimizer: torch.optim.Optimizer, names: Mapping[torch.Tensor, str]
) -> dict[str, torch.Tensor]:
    """The optimizer's tensors and numbers, by 'parameter:entry', and the counters of its groups, by
    'groups.0:entry'.
    """
    states = {names[parameter]: state for parameter, state in optimizer.state.items()}
    for name, numbers in _numbers_of_groups(optimizer).items():
        usual = optimizer.defaults
        states[name] = {
            entry: value
            for entry, value in numbers.items()
            if entry not in usual or value is not usual[entry] and value != usual[entry]
        }
    return {
        f'{name}:{entry}': value
        if isinstance(value, torch.Tensor)
        else torch.tensor(value, dtype=torch.float64)
        for name, state in states.items()
        for entry, value in state.items()
        if value is not None
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    saved: Mapping[str, torch.Tensor],
) -> None:
    """Restores `optimizer_state` exactly. Numbers that were no tensors become numbers again.

    DataError for an entry whose name, shape or dtype the optimizer itself would not make. Then nothing is
    restored.
    """
    after = _after_a_step(optimizer)
    made: dict[str, Mapping[str, Any]] = dict(_numbers_of_groups(after))
    copies = dict(zip(_parameters(optimizer), _parameters(after)))
    for name, parameter in parameters.items():
        made[name] = after.state[copies[parameter]]
    for key, value in saved.items():
        name, _, entry = key.rpartition(':')
        if name not in made:
            raise DataError(
                f'the checkpoint has optimizer state for {name!r}, which does not train in this run; '
                f'resume with the config that began the run.'
            )
        wanted = made[name].get(entry)
        like = wanted if isinstance(wanted, torch.Tensor) else torch.tensor(0, dtype=torch.float64)
        if wanted is None or value.shape != like.shape or value.dtype != like.dtype or value.isnan().any():
            raise DataError(
                f'the checkpoint has optimizer state {key!r}, {value.dtype} of shape {tuple(value.shape)}, '
                f'which {type(optimizer).__name__} cannot have here; resume with the config that began the '
                'run.'
            )
    groups = {f'groups.{i}': group for i, group in enumerate(optimizer.param_groups)}
    for key, value in saved.items():
        name, _, entry = key.rpartition(':')
        wanted = made[name][entry]
        target = groups[name] if name in groups else optimizer.state[parameters[name]]
        target[entry] = (
            value.to(wanted.device) if isinstance(wanted, torch.Tensor) else type(wanted)(value.item())
        )


def _numbers_of_groups(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """{'groups.0': numbers}. Some optimizers count their steps there."""
    found = {}
    for i, group in enumerate(optimizer.param_groups):
        found[f'groups.{i}'] = {
            entry: value
            for entry, value in group.items()
            if entry not in OPTIONS and isinstance(value, int | float | torch.Tensor)
        }
    return found


def _after_a_step(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """A copy of a fresh optimizer after one step of zero gradients."""
    other = copy.deepcopy(optimizer)
    for parameter in _parameters(other):
        parameter.grad = torch.zeros_like(parameter)
    with in_training(other):
        other.step()
    return other


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.nn.Parameter]:
    for group in optimizer.param_groups:
        yield from group['params']
