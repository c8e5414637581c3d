"""DeiT-Tiny on one thread of a CPU: the options and the run that several benchmarks share.

closed_form.py, flowers.py, segmentation.py, objectives.py and imbalance.py import this file. The weights are
the file weights/deit_tiny_patch16_224.safetensors of the data folder.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vet import build_trainer

NAME = 'deit_tiny_patch16_224'
CONFIGS = Path(__file__).parents[1] / 'configs'
Options = dict[str, Any]
ON_A_CPU: Options = {
    'train.dataloader.workers_per_gpu': 0,
    'train.precision': 'fp32',
    'train.threads': 1,
    'evaluation.dataloader.workers_per_gpu': 0,
    'evaluation.before': False,
    'evaluation.report': False,
}


def parser(page: str | None) -> argparse.ArgumentParser:
    """A parser with the text of the benchmark and the argument --data-root."""
    made = argparse.ArgumentParser(description=page, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument('--data-root', type=Path, required=True)
    return made


def weights(root: Path) -> str:
    return str(root / 'weights' / f'{NAME}.safetensors')


def backbone(file: str, size: int) -> Options:
    """The entry of the backbone for whole images of `size` x `size` pixels."""
    images = dict(size=size, crop_pct=1.0)
    return dict(type='timm', name=NAME, checkpoint=file, kwargs=dict(img_size=size), preprocessing=images)


def trained(
    config: str, changes: Mapping[str, Any], root: Path, folder: Path, seed: int
) -> tuple[Any, Options]:
    """The trainer after its training, and the summary. config: a file in configs/."""
    options = {'model.backbone.checkpoint': weights(root), **ON_A_CPU, **changes}
    trainer = build_trainer(
        model=CONFIGS / config, cfg_options=options, data_root=root, work_dir=folder, seed=seed, device='cpu'
    )
    return trainer, trainer.train()
