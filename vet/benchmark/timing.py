"""Timing: makes a few training steps of a run, for an estimate. vet needs this estimate if no similar run was
measured. The file also measures the start of a process, which all runs on this machine share.
"""

import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from vet.benchmark.suite import Run
from vet.builders import build_datasets, build_trainer
from vet.config import read_settings
from vet.engine.saving.door import read_log
from vet.errors import UserError
from vet.files import JsonObject
from vet.log import console

STEPS = 3  # the first step only warms up
ON_CPU = 16  # the most images of a step without a GPU


@cache
def start_seconds() -> float:
    """Seconds that a new process takes before its run begins: Python and its imports. Measured here, once."""
    began = time.perf_counter()
    imports = 'import timm, vet.benchmark.worker'
    subprocess.run([sys.executable, '-c', imports], check=True, capture_output=True)
    return time.perf_counter() - began


def seconds_per_image(run: Run, data_root: str, device: str | None) -> float | None:
    """Seconds of training per image: reading, augmentation and the step.

    None for several tasks, and if the training fails, as the real run would.
    """
    settings = read_settings(run.config)
    batch = settings.train.dataloader.batch_size_per_gpu
    if not torch.cuda.is_available() or device == 'cpu':
        batch = min(batch, ON_CPU)
    options = {
        'train.max_epochs': 1,
        'train.stages': [],
        'train.lr_scheduler.T_max': None,
        'train.log_every': 1,
        'train.early_stop': None,
        'train.cache_features': False,
        'train.dataloader.batch_size_per_gpu': batch,
        'evaluation.select': 'last',
        'evaluation.before': False,
    }
    config: JsonObject = {**run.config, 'dataset': {}}
    was_quiet = console.quiet
    console.quiet = True
    try:
        whole: Any = build_datasets(settings, data_root)['train']
        few = Subset(whole, range(min(STEPS * batch, len(whole))))
        vars(few)['classes'] = whole.classes
        with tempfile.TemporaryDirectory() as folder:
            build_trainer(
                model=config, cfg_options=options, train_dataset=few, work_dir=folder, device=device
            ).train()
            rates = [record['images_per_second'] for record in read_log(Path(folder))]
    except (UserError, RuntimeError, AttributeError):
        return None
    finally:
        console.quiet = was_quiet
    return 1 / rates[-1] if rates else None
