"""Measures calibration and vectors on Flowers 102, with DeiT-Tiny.

    python benchmarks/flowers.py --data-root DIR

DIR holds flowers-102/ and weights/deit_tiny_patch16_224.safetensors. Images are resized to 112 x 112 pixels,
and features are computed once. Calibration: the errors before and after temperature scaling, chosen on the
official validation split, for LDA and for a linear probe of 100 epochs. Vectors: a linear layer of 128
outputs, trained by each loss of Embedding, against the layer before training; and the vote of the 20 nearest
training images, also by the features themselves. The classes of the test images are those of training.
Writes results/flowers.json.
"""

import json
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import deit_tiny

from vet.benchmark import record

RESULTS = Path(__file__).parent / 'results' / 'flowers.json'
SIZE = 112
DATA = f'Flowers 102, short side 224 pixels, here {SIZE} x {SIZE}'
CALIBRATED: dict[str, dict[str, Any]] = {
    'LDA': {'model.head': dict(type='LDA'), 'train.max_epochs': 0},
    'linear probe': {'train.max_epochs': 100},
}
LOSSES = ('ArcFaceLoss', 'SupervisedContrastiveLoss', 'ProxyAnchorLoss')
VECTORS: dict[str, Any] = {
    'model.objective': dict(type='Embedding'),
    'model.head': dict(type='Embedding', size=128),
    'train.max_epochs': 50,
    'train.dataloader.batch_size_per_gpu': 256,
    'evaluation.before': True,
}
RETRIEVAL = ('recall_at_1', 'recall_at_5', 'map_at_r')


def options(changes: dict[str, Any]) -> dict[str, Any]:
    views = [dict(type='Resize', size=[SIZE, SIZE], interpolation='bicubic')]
    return {
        'model.backbone.kwargs': dict(img_size=SIZE),
        'model.backbone.preprocessing': dict(size=SIZE, crop_pct=1.0),
        'train.transform': views,
        'evaluation.transform': views,
        'train.cache_features': True,
        'train.cache_images': True,
        'evaluation.every': 100,
        **changes,
    }


def trained(root: Path, folder: Path, changes: dict[str, Any], seed: int = 0) -> tuple[Any, dict[str, Any]]:
    return deit_tiny.trained('deit_tiny_linear_flowers.py', options(changes), root, folder, seed)


def votes(root: Path, folder: Path) -> float:
    """The share of test images that the 20 nearest training images name rightly."""
    command = [sys.executable, '-m', 'vet', 'test', folder, '--knn', '--data-root', root, '--device', 'cpu']
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout)['knn'])


def calibration(root: Path, folder: Path, name: str) -> tuple[Any, dict[str, Any]]:
    """The trainer and the row of a head, without and with calibration."""
    row: dict[str, Any] = {}
    for calibrate in (False, True):
        extra = {'evaluation.calibrate': calibrate, 'evaluation.metrics': ['accuracy', 'ece']}
        trainer, summary = trained(root, folder / str(calibrate), CALIBRATED[name] | extra)
        row['after' if calibrate else 'before'] = {key: summary[key] for key in ('accuracy', 'ece')}
    return trainer, row | dict(validation=summary['calibration'])


def vectors(root: Path, folder: Path, loss: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """The trainer and the row of a loss of Embedding."""
    changes = VECTORS | {'train.loss': dict(type=loss), 'evaluation.metrics': list(RETRIEVAL)}
    trainer, summary = trained(root, folder, changes, seed)
    found = {key: summary[key] for key in RETRIEVAL}
    return trainer, found | dict(knn=votes(root, folder), before=summary['before'])


def features(root: Path, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The trainer and the row of the features of the frozen network, which the probe of 100 epochs reads."""
    trainer, summary = trained(root, folder, CALIBRATED['linear probe'])
    return trainer, dict(knn=votes(root, folder), accuracy=summary['accuracy'])


def main() -> None:
    parser = deit_tiny.parser(__doc__)
    parser.add_argument('--seeds', type=int, default=1, help='of the vectors (default: %(default)s)')
    record.add_output(parser, RESULTS)
    args = parser.parse_args()
    root = args.data_root.absolute()
    measured = record.Rows(record.output(args), ('part', 'name', 'seed'), DATA)
    jobs = [('calibration', name, 0) for name in CALIBRATED] + [('features', 'linear probe', 0)]
    jobs += [('vectors', loss, seed) for seed, loss in product(range(args.seeds), LOSSES)]
    for study, name, seed in jobs:
        row = dict(part=study, name=name, seed=seed)
        if row in measured:
            continue
        with tempfile.TemporaryDirectory() as folder:
            if study == 'calibration':
                trainer, found = calibration(root, Path(folder), name)
            elif study == 'features':
                trainer, found = features(root, Path(folder) / 'run')
            else:
                trainer, found = vectors(root, Path(folder) / 'run', name, seed)
        measured.add(row | found, trainer.accelerator.device)
        print(row, found, flush=True)


if __name__ == '__main__':
    main()
