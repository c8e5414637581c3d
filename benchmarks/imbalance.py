"""Measures remedies for unequal classes: Flowers 102 cut 10 : 1, with DeiT-Tiny.

    python benchmarks/imbalance.py --data-root DIR

DIR holds flowers-102/ and weights/deit_tiny_patch16_224.safetensors. Each class has 20 images in the official
train and validation splits together. Class k of the 102 keeps round(20 x 0.1^(k / 101)) of them: 20 to 2. A
seed draws the order of the classes and the images that stay. The test split stays whole. Images are resized
to 112 x 112 pixels. A linear probe trains on kept features, and LoRA of rank 10 with flips. Writes
results/imbalance.json.
"""

import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import deit_tiny
import numpy as np
from torchvision.datasets import Flowers102

from vet import build_trainer
from vet.benchmark import record
from vet.datasets.base import ImageDataset

RESULTS = Path(__file__).parent / 'results' / 'imbalance.json'
SIZE = 112
RATIO = 10
CLASSES = 102
DATA = f'Flowers 102 cut {RATIO} : 1, short side 224 pixels, here {SIZE} x {SIZE}'
REMEDIES: dict[str, dict[str, Any]] = {
    'plain': {},
    'class weights': dict(loss=dict(type='CrossEntropyLoss', class_weight='balanced')),
    'sampler': dict(sampler=dict(type='ClassBalanced')),
    'logit adjustment': dict(loss=dict(type='LogitAdjustedLoss')),
}
TUNERS: dict[str, dict[str, Any]] = {
    'LinearProbe': dict(
        tuners=[dict(type='LinearProbe')], epochs=60, lr=5e-3, flips=False, train=dict(cache_features=True)
    ),
    'LoRA': dict(
        tuners=[dict(type='LoRA', rank=10, at='attn.qkv')], epochs=10, lr=2e-3, flips=True, train={}
    ),
}


def flowers(root: Path, splits: list[str]) -> list[tuple[Path, int]]:
    """The files and labels of official splits of Flowers 102."""
    datasets = [Flowers102(root, split) for split in splits]
    return [pair for dataset in datasets for pair in zip(dataset._image_files, dataset._labels)]


def long_tail(targets: list[int], seed: int) -> list[int]:
    """The numbers of the images that stay: exponentially fewer from class to class, RATIO : 1."""
    draw = np.random.default_rng(seed)
    labels = np.array(targets)
    kept = []
    for place, label in enumerate(draw.permutation(CLASSES)):
        own = draw.permutation(np.flatnonzero(labels == label))
        count = round(len(own) * RATIO ** (-place / (CLASSES - 1)))
        kept += own[:count].tolist()
    return sorted(kept)


def config(root: Path, row: dict[str, Any], remedy: dict[str, Any]) -> dict[str, Any]:
    flips = [dict(type='RandomHorizontalFlip')] if row['flips'] else []
    return dict(
        model=dict(backbone=deit_tiny.backbone(deit_tiny.weights(root), SIZE), tuners=row['tuners']),
        dataset={},
        train=dict(
            max_epochs=row['epochs'],
            optimizer=dict(type='AdamW', lr=row['lr'], weight_decay=1e-4),
            lr_scheduler=dict(warmup_epochs=1),
            dataloader=dict(batch_size_per_gpu=32, workers_per_gpu=0),
            transform=[dict(type='Resize', size=[SIZE, SIZE]), *flips],
            precision='fp32',
            cache_images=True,
            threads=1,
            **row['train'],
            **remedy,
        ),
        evaluation=dict(
            metrics=['mean_per_class_accuracy', 'accuracy'],
            transform=[dict(type='Resize', size=[SIZE, SIZE])],
            dataloader=dict(workers_per_gpu=0),
            before=False,
        ),
    )


def main() -> None:
    parser = deit_tiny.parser(__doc__)
    parser.add_argument('--seeds', type=int, default=3, help='how many (default: %(default)s)')
    parser.add_argument('--tuners', nargs='+', choices=TUNERS, default=list(TUNERS))
    record.add_output(parser, RESULTS)
    args = parser.parse_args()
    path = record.output(args)
    root = args.data_root.absolute()
    measured = record.Rows(path, ('tuner', 'remedy', 'seed'), DATA)
    names = [str(label) for label in range(CLASSES)]
    everything = flowers(root, ['train', 'val'])
    test = ImageDataset(names, flowers(root, ['test']))
    labels = [label for _, label in everything]
    with tempfile.TemporaryDirectory() as folder:
        for tuner, seed, remedy in product(args.tuners, range(args.seeds), REMEDIES):
            row = dict(tuner=tuner, remedy=remedy, seed=seed)
            if row in measured:
                continue
            train = ImageDataset(names, [everything[i] for i in long_tail(labels, seed)])
            trainer = build_trainer(
                model=config(root, TUNERS[tuner], REMEDIES[remedy]),
                train_dataset=train,
                eval_dataset=test,
                work_dir=Path(folder) / f'{tuner}-{remedy}-{seed}',
                seed=seed,
                device='cpu',
            )
            summary = trainer.train()
            found = dict(
                test={name: summary[name] for name in trainer.metrics},
                train_images=len(train),
                epochs=TUNERS[tuner]['epochs'],
                seconds=summary['train_seconds'],
            )
            measured.add(row | found, trainer.accelerator.device)
            print(row, found, flush=True)


if __name__ == '__main__':
    main()
