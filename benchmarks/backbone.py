"""Compares a backbone that was trained again with the backbone that ships with vet. `make backbone` runs
this.

    python benchmarks/backbone.py build/digits_vit

build/digits_vit is the work folder of the training. Its weights are in build/digits_vit.safetensors. The
script prints the largest difference of the weights, and the accuracy of both on the test images of the digits
0 to 4. A logistic regression on the frozen features gives the accuracy, because the shipped backbone has no
head for these digits.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from vet.backbones.digits import ARCHITECTURE, WEIGHTS
from vet.backbones.timm import timm_backbone
from vet.datasets.digits import Digits


def largest_difference(one: Path, other: Path) -> float:
    """Of all numbers. ValueError where the files hold other tensors."""
    ours, theirs = load_file(one), load_file(other)
    if {name: value.shape for name, value in ours.items()} != {
        name: value.shape for name, value in theirs.items()
    }:
        raise ValueError(f'{one} and {other} hold other tensors')
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


@torch.no_grad()
def accuracy(weights: Path) -> float:
    """Of a logistic regression on the features of the digits 0 to 4."""
    backbone = timm_backbone(
        'vit_tiny_patch16_224',
        pretrained=False,
        checkpoint=weights,
        kwargs=ARCHITECTURE,
        preprocessing=dict(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0),
    ).eval()
    found = {}
    for split in ('train', 'test'):
        dataset = Digits(split=split, digits=range(5))
        # (N, 8, 8)
        pixels = torch.tensor(np.stack([image for image, _ in dataset.samples])).float() / 127.5 - 1
        found[split] = backbone(pixels[:, None].expand(-1, 3, -1, -1)).numpy(), np.array(dataset.targets)
    return LogisticRegression(max_iter=1000).fit(*found['train']).score(*found['test'])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('work_dir', type=Path)
    rebuilt = parser.parse_args().work_dir.with_suffix('.safetensors')
    print(
        f'torch {torch.__version__}: the largest difference of the weights is '
        f'{largest_difference(WEIGHTS, rebuilt):.1e}'
    )
    print(f'accuracy on the digits 0 to 4: shipped {accuracy(WEIGHTS):.4f}, rebuilt {accuracy(rebuilt):.4f}')


if __name__ == '__main__':
    main()
