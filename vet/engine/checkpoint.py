"""Checkpoints: what was trained, the optimizer's state and where the run stands, as tensors and JSON in one folder.

`step-00000120/state.safetensors` holds tensors under 'model.', 'tuners.', 'optimizer.', 'ema.' and 'best.'; `progress.json`
the rest. Every random draw is a function of the seed and the step (see seeding), so those two are the whole random state.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from vet.engine.files import publish_folder, remove_folder, write_file
from vet.errors import DataError

TENSORS, PROGRESS = 'state.safetensors', 'progress.json'


@dataclass
class Progress:
    """Where a run stands after `step` optimizer steps."""

    seed: int
    step: int = 0
    processes: int = 1                  # that share a global batch
    log_bytes: int = 0                  # the log's length, to which a resumed run cuts it back
    best: float | None = None           # the best validation result so far, and its epoch
    best_epoch: int = 0
    stopped: bool = False               # early
    train_seconds: float = 0.0
    before: dict[str, float] | None = None  # the test result before step 0


def save_checkpoint(folder: Path, progress: Progress, parts: Mapping[str, Mapping[str, torch.Tensor]], keep: int) -> None:
    """Publishes `folder/step-…`, then removes all but the newest `keep`.

    parts: 'model', 'optimizer', … to named tensors.
    """
    tensors = {f'{part}.{name}': tensor.detach().cpu().contiguous().clone()
               for part, named in parts.items() for name, tensor in named.items()}

    def fill(temporary: Path) -> None:
        write_file(temporary / TENSORS, save(tensors))
        write_file(temporary / PROGRESS, json.dumps(asdict(progress), indent=1))

    publish_folder(folder / f'step-{progress.step:08d}', fill)
    for old in list_checkpoints(folder)[:-keep]:
        remove_folder(old)


def load_checkpoint(path: Path) -> tuple[Progress, dict[str, dict[str, torch.Tensor]]]:
    """The progress and the parts of one checkpoint. DataError if a file is missing or cut short."""
    try:
        progress = Progress(**json.loads((path / PROGRESS).read_text()))
        tensors = load_file(path / TENSORS)
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise DataError(f'the checkpoint {str(path)!r} cannot be read: {error}. Give another one with --resume PATH; '
                        f'a checkpoint is a folder step-… with {TENSORS} and {PROGRESS}.') from error
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition('.')
        parts.setdefault(part, {})[rest] = tensor
    return progress, parts


def list_checkpoints(folder: Path) -> list[Path]:
    """The published checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob('step-*') if re.fullmatch(r'step-\d+', path.name))


def optimizer_state(optimizer: torch.optim.Optimizer, names: Mapping[Any, str]) -> dict[str, torch.Tensor]:
    """The optimizer's tensors and numbers by 'parameter:entry'."""
    return {f'{names[parameter]}:{entry}': value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
            for parameter, state in optimizer.state.items() for entry, value in state.items() if value is not None}


def load_optimizer_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter],
                         saved: Mapping[str, torch.Tensor]) -> None:
    """Puts `optimizer_state` back, exactly. Numbers that were no tensors come back as numbers."""
    for key, value in saved.items():
        name, _, entry = key.rpartition(':')
        if name not in parameters:
            raise DataError(f'the checkpoint has optimizer state for {name!r}, which does not train in this run; '
                            f'resume with the config that began the run.')
        parameter = parameters[name]
        is_number = value.dtype == torch.float64 and value.ndim == 0 and parameter.dtype != torch.float64
        on_cpu = entry == 'step' or value.ndim == 0
        optimizer.state[parameter][entry] = value.item() if is_number else value if on_cpu else value.to(parameter.device)
