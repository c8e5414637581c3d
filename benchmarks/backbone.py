"""Compares a backbone that was trained anew with the one that ships with vet. `make backbone` runs this.

    python benchmarks/backbone.py build/digits_vit          the work folder; the weights are in build/digits_vit.safetensors

Prints the largest difference of the weights, and the accuracy of both on the test images of the digits 0 to 4. The shipped
backbone has no head for these digits, so each backbone gets a linear probe here.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from vet import build_trainer
from vet.backbones.digits import ARCHITECTURE, WEIGHTS


def largest_difference(one: Path, other: Path) -> float:
    """Of all numbers. ValueError where the files hold other tensors."""
    ours, theirs = load_file(one), load_file(other)
    if {name: value.shape for name, value in ours.items()} != {name: value.shape for name, value in theirs.items()}:
        raise ValueError(f'{one} and {other} hold other tensors')
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def probe(weights: Path, epochs: int = 60) -> float:
    """The test accuracy of a linear probe on the digits 0 to 4."""
    backbone = dict(type='timm', name='vit_tiny_patch16_224', checkpoint=str(weights), kwargs=ARCHITECTURE,
                    preprocessing=dict(size=8, mean=[0.5] * 3, std=[0.5] * 3, crop_pct=1.0))
    digits = {split: dict(type='Digits', split=split, digits=[0, 1, 2, 3, 4]) for split in ('train', 'test')}
    config = dict(model=dict(backbone=backbone, tuners=[dict(type='LinearProbe')], head=dict(type='Linear')), dataset=digits,
                  train=dict(max_epochs=epochs, threads=1, optimizer=dict(type='AdamW', lr=1e-2),
                             dataloader=dict(batch_size_per_gpu=64, workers_per_gpu=0)),
                  evaluation=dict(before=False, dataloader=dict(workers_per_gpu=0)))
    with tempfile.TemporaryDirectory() as folder:
        return build_trainer(model=config, work_dir=folder, device='cpu', seed=0).train()['accuracy']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path)
    rebuilt = parser.parse_args().work_dir.with_suffix('.safetensors')
    accuracies = [probe(weights) for weights in (WEIGHTS, rebuilt)]
    print(f'torch {torch.__version__}: the largest difference of the weights is {largest_difference(WEIGHTS, rebuilt):.1e}')
    print('accuracy of a linear probe: shipped {:.4f}, rebuilt {:.4f}'.format(*accuracies))


if __name__ == '__main__':
    main()
