"""Measures heads in closed form on Flowers 102 with DeiT-Tiny: alone, and as the start of LoRA.

    python benchmarks/closed_form.py --data-root DIR

DIR holds flowers-102/ and weights/deit_tiny_patch16_224.safetensors. LDA, Ridge and a linear probe of 20
epochs see images as evaluation sees them, at 224 pixels. LoRA of rank 10 trains with the project's recipe
(configs/_base_/recipes/vet.py), from a random head and from the head of LDA, for 10 and for 20 epochs, at
--pixels. Writes results/closed_form.json.
"""

import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import deit_tiny

from vet.benchmark import record

RESULTS = Path(__file__).parent / 'results' / 'closed_form.json'
HEADS = {'random': dict(type='Linear'), 'LDA': dict(type='LDA'), 'Ridge': dict(type='Ridge')}
OF_TUNER = {'LinearProbe': 'deit_tiny_linear_flowers.py', 'LoRA': 'deit_tiny_lora_flowers.py'}
DATA = 'Flowers 102, 1,020 train and 6,149 test images, short side 224 pixels'
NAMED = ('tuner', 'start', 'epochs', 'pixels', 'seed')


def alone() -> list[dict[str, Any]]:
    rows = [('LDA', 0), ('Ridge', 0), ('random', 20)]
    return [dict(tuner='LinearProbe', start=start, epochs=epochs, pixels=224) for start, epochs in rows]


def starts(pixels: int) -> list[dict[str, Any]]:
    rows = product((10, 20), ('LDA', 'random'))
    return [dict(tuner='LoRA', start=start, epochs=epochs, pixels=pixels) for epochs, start in rows]


def options(row: dict[str, Any]) -> dict[str, Any]:
    """What a row changes in the config of its tuner."""
    size = row['pixels']
    seen = [dict(type='Resize', size=round(size / 0.9), interpolation='bicubic'), dict(type='CenterCrop')]
    keeps = {'train.transform': seen, 'train.cache_features': True} if row['tuner'] == 'LinearProbe' else {}
    return {
        'model.backbone.kwargs': dict(img_size=size),
        'model.backbone.preprocessing': dict(size=size),
        'model.head': HEADS[row['start']],
        'dataset.val': None,
        'train.max_epochs': row['epochs'],
        **keeps,
    }


def main() -> None:
    parser = deit_tiny.parser(__doc__)
    parser.add_argument('--pixels', type=int, default=224, help='of LoRA (default: %(default)s)')
    parser.add_argument('--seeds', type=int, default=1, help='of LoRA (default: %(default)s)')
    parser.add_argument('--only', choices=('alone', 'starts'), help='one half of the rows')
    record.add_output(parser, RESULTS)
    args = parser.parse_args()
    path = record.output(args)
    root = args.data_root.absolute()
    measured = record.Rows(path, NAMED, DATA)
    rows = [row | dict(seed=0) for row in alone()] if args.only != 'starts' else []
    if args.only != 'alone':
        rows += [row | dict(seed=seed) for seed in range(args.seeds) for row in starts(args.pixels)]
    for row in rows:
        if row in measured:
            continue
        with tempfile.TemporaryDirectory() as folder:
            config = OF_TUNER[row['tuner']]
            place = Path(folder) / 'run'
            trainer, summary = deit_tiny.trained(config, options(row), root, place, row['seed'])
        found = dict(accuracy=summary['accuracy'], seconds=summary['train_seconds'])
        measured.add(row | found, trainer.accelerator.device)
        print(row, found, flush=True)


if __name__ == '__main__':
    main()
