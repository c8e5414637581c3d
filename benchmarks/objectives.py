"""Measures each objective on real data: on the street images of CamVid, with DeiT-Tiny.

    python benchmarks/objectives.py --data-root DIR

DIR holds camvid/{train,val,test}/{images,masks}/ and weights/deit_tiny_patch16_224.safetensors. The masks
give the targets. MultiLabel: the classes that cover at least 0.5 % of the labelled pixels. Regression: the
share of road among the labelled pixels, in %. Ordinal: the share of road in five grades, each with as many
training images; by CORN, and by the cumulative link model. SingleLabel: the same grades, without their order.
LoRA of rank 10 is compared with the linear probe, and with a baseline that sees no image. Images are resized
to 64 x 64 pixels. Writes results/objectives.json.
"""

import csv
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import deit_tiny
import numpy as np
from PIL import Image
from sklearn import metrics

from vet import build_trainer
from vet.benchmark import record

CLASSES = 'sky building pole road pavement tree sign fence car pedestrian cyclist'.split()
ROAD = CLASSES.index('road')
UNLABELLED = 11
LEAST = 0.005
DATA = 'CamVid, images of 240 x 180 pixels (resized from 480 x 360), here 64 x 64'
RESULTS = Path(__file__).parent / 'results' / 'objectives.json'
TUNERS = {'LinearProbe': [dict(type='LinearProbe')], 'LoRA': [dict(type='LoRA', rank=10, at='attn.qkv')]}
SIZE = 64
GRADES = [f'grade {number}' for number in range(1, 6)]
GRADED = dict(columns=dict(label='grade'), classes=GRADES)
ROWS: dict[str, dict[str, Any]] = {
    'SingleLabel': dict(
        entry=GRADED, train={}, metrics=['accuracy', 'mean_per_class_accuracy', 'macro_f1', 'auroc', 'ece']
    ),
    'MultiLabel': dict(entry={}, train=dict(loss=dict(type='BCEWithLogitsLoss'))),
    'Regression': dict(entry=dict(targets=['road']), train=dict(loss=dict(type='MSELoss'))),
    'Ordinal': dict(entry=GRADED, train={}),
}
ROWS['Ordinal, CumulativeLink'] = ROWS['Ordinal'] | dict(head=dict(type='CumulativeLink'))


def write_table(camvid: Path, path: Path) -> None:
    """A table path,label,road,grade,split of all images."""
    rows: list[tuple[Any, ...]] = []
    for split in ('train', 'val', 'test'):
        for image in sorted((camvid / split / 'images').iterdir()):
            mask = np.asarray(Image.open(camvid / split / 'masks' / f'{image.stem}.png'))
            shares = (
                np.bincount(mask[mask != UNLABELLED], minlength=len(CLASSES)) / (mask != UNLABELLED).sum()
            )
            present = '|'.join(name for name, share in zip(CLASSES, shares) if share >= LEAST)
            rows.append((image, present, 100 * shares[ROAD], split))
    edges = np.quantile([road for *_, road, split in rows if split == 'train'], [0.2, 0.4, 0.6, 0.8])
    graded = [(*row[:3], GRADES[np.searchsorted(edges, row[2])], row[3]) for row in rows]
    with open(path, 'w', newline='') as file:
        csv.writer(file).writerows([('path', 'label', 'road', 'grade', 'split'), *graded])


def config(
    table: Path, weights: str, objective: str, entry: dict[str, Any], train: dict[str, Any], epochs: int
) -> Any:
    return dict(
        model=dict(objective=dict(type=objective), backbone=deit_tiny.backbone(weights, SIZE)),
        dataset={
            split: dict(type='CSV', file=str(table), split=split, **entry)
            for split in ('train', 'val', 'test')
        },
        train=dict(
            max_epochs=epochs,
            optimizer=dict(type='AdamW', lr=2e-3, weight_decay=1e-4),
            lr_scheduler=dict(warmup_epochs=1),
            dataloader=dict(batch_size_per_gpu=32, workers_per_gpu=0),
            transform=[dict(type='Resize', size=[SIZE, SIZE]), dict(type='RandomHorizontalFlip')],
            precision='fp32',
            cache_images=True,
            threads=1,
            **train,
        ),
        evaluation=dict(
            transform=[dict(type='Resize', size=[SIZE, SIZE])],
            dataloader=dict(workers_per_gpu=0),
            every=epochs,
            before=False,
        ),
    )


def baseline(trainer: Any) -> dict[str, float]:
    """The result of the same answer for every image: the mean, or the classes' shares."""
    train = np.array([_plain(trainer, 'train', i) for i in range(len(trainer.data['train']))])
    test = np.array([_plain(trainer, 'test', i) for i in range(len(trainer.data['test']))])
    if 'accuracy' in trainer.metrics:
        guess = np.full_like(test, np.bincount(train).argmax())
        return dict(
            accuracy=float((test == guess).mean()),
            mean_per_class_accuracy=1 / len(np.unique(test)),
            macro_f1=float(metrics.f1_score(test, guess, average='macro', zero_division=0)),
            auroc=0.5,
        )
    if train.ndim == 1:
        guess = np.full_like(test, np.median(train))
        kappa = metrics.cohen_kappa_score(test, guess, labels=range(len(GRADES)), weights='quadratic')
        return dict(
            rank_mae=float(np.abs(test - guess).mean()),
            quadratic_kappa=float(kappa),
            rank_accuracy=float((test == guess).mean()),
        )
    if train.dtype.kind == 'f':
        guess = np.broadcast_to(train.mean(0), test.shape)
        return dict(
            mae=float(metrics.mean_absolute_error(test, guess)),
            rmse=float(metrics.root_mean_squared_error(test, guess)),
            r2=float(metrics.r2_score(test, guess)),
        )
    guess = np.broadcast_to(train.mean(0) >= 0.5, test.shape)
    f1 = [metrics.f1_score(test[:, k], guess[:, k], zero_division=0) for k in range(test.shape[1])]
    return dict(
        mAP=float(test.mean(0)[test.any(0)].mean()),
        f1=float(np.mean(f1)),
        subset_accuracy=float((guess == test).all(1).mean()),
    )


def _plain(trainer: Any, split: str, index: int) -> Any:
    return trainer.model.objective.check(trainer.data[split].targets[index], lambda: f'image {index}')


def main() -> None:
    parser = deit_tiny.parser(__doc__)
    parser.add_argument('--epochs', type=int, default=10, help='of each run (default: %(default)s)')
    parser.add_argument('--seeds', type=int, default=3, help='how many (default: %(default)s)')
    parser.add_argument('--only', nargs='+', choices=ROWS, default=list(ROWS), help='some objectives')
    record.add_output(parser, RESULTS)
    args = parser.parse_args()
    measured = record.Rows(record.output(args), ('objective', 'tuner', 'seed'), DATA)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / 'camvid.csv'
        write_table(args.data_root.absolute() / 'camvid', table)
        weights = deit_tiny.weights(args.data_root.absolute())
        for objective, tuner, seed in product(args.only, TUNERS, range(args.seeds)):
            row = dict(objective=objective, tuner=tuner, seed=seed)
            if row in measured:
                continue
            kind = objective.partition(',')[0]
            given = ROWS[objective]
            made = config(table, weights, kind, given['entry'], given['train'], args.epochs)
            made['model'] |= dict(tuners=TUNERS[tuner], head=given.get('head', dict(type='Linear')))
            if 'metrics' in given:
                made['evaluation']['metrics'] = given['metrics']
            place = Path(folder) / f'{objective}-{tuner}-{seed}'
            trainer = build_trainer(model=made, work_dir=place, seed=seed, device='cpu')
            summary = trainer.train()
            found = dict(
                test={name: summary[name] for name in trainer.metrics},
                baseline=baseline(trainer),
                found=trainer.model.objective.state(),
                epochs=args.epochs,
                seconds=summary['train_seconds'],
                trainable=summary['parameters']['trainable'],
            )
            measured.add(row | found, trainer.accelerator.device)
            print(row, found, flush=True)


if __name__ == '__main__':
    main()
