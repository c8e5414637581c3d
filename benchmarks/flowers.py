"""Measures calibration and vectors on Flowers 102, with DeiT-Tiny.

    python benchmarks/flowers.py --data-root DIR

DIR holds flowers-102/ and weights/deit_tiny_patch16_224.safetensors. Images are resized to 112 x 112 pixels,
and features are computed once. Calibration: the errors before and after temperature scaling, chosen on the
official validation split, for LDA and for a linear probe of 100 epochs. Vectors: a linear layer of 128
outputs, trained by each loss of Embedding, against the layer before training. The classes of the test images
are those of training.
Writes results/flowers.json.
"""

import tempfile
from pathlib import Path
from typing import Any

import deit_tiny

from vet.benchmark import record
from vet.environment import describe

RESULTS = Path(__file__).parent / 'results' / 'flowers.json'
SIZE = 112
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


def trained(root: Path, folder: Path, changes: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return deit_tiny.trained('deit_tiny_linear_flowers.py', options(changes), root, folder, seed=0)


def main() -> None:
    parser = deit_tiny.parser(__doc__)
    record.add_output(parser, RESULTS)
    args = parser.parse_args()
    path, root = record.output(args), args.data_root.absolute()
    found: dict[str, Any] = dict(data='Flowers 102, short side 224 pixels, here 112 x 112')
    found |= dict(calibration=[], vectors=[])
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in CALIBRATED.items():
            row: dict[str, Any] = dict(model=name)
            for calibrate in (False, True):
                extra = {'evaluation.calibrate': calibrate, 'evaluation.metrics': ['accuracy', 'ece']}
                place = Path(folder) / f'{name}-{calibrate}'
                trainer, summary = trained(root, place, changes | extra)
                row['after' if calibrate else 'before'] = {key: summary[key] for key in ('accuracy', 'ece')}
            row['validation'] = summary['calibration']
            found['calibration'].append(row)
            print(row, flush=True)
            found['environment'] = describe(trainer.accelerator.device)
            record.write(path, found)
        for loss in LOSSES:
            changes = VECTORS | {'train.loss': dict(type=loss), 'evaluation.metrics': list(RETRIEVAL)}
            trainer, summary = trained(root, Path(folder) / loss, changes)
            if not found['vectors']:
                found['vectors'].append(dict(vectors='untrained layer', **summary['before']))
            result = {key: summary[key] for key in RETRIEVAL}
            found['vectors'].append(dict(vectors=loss, **result))
            print(found['vectors'][-1], flush=True)
            found['environment'] = describe(trainer.accelerator.device)
            record.write(path, found)


if __name__ == '__main__':
    main()
