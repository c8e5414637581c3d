"""Measures the winner of `vet tune` beside the default LoRA, at equal epochs, with DeiT-Tiny.

    python benchmarks/tune.py --data-root DIR --minutes 12

DIR holds flowers-102/, cifar100-subset/ and weights/deit_tiny_patch16_224.safetensors. Both sides train on
the same images by the project's recipe (configs/_base_/recipes/vet.py). Flowers has an official validation
split; of the part of CIFAR-100, 20 % of the training images are held out in the search. Each side reads the
test images once. Each data set is written when its runs end. Writes results/tune.json.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from vet import build_trainer
from vet.benchmark import record
from vet.environment import describe
from vet.search.tuning import Options, tune

RESULTS = Path(__file__).parent / 'results' / 'tune.json'
CONFIG = Path(__file__).parents[1] / 'configs' / 'deit_tiny_lora_flowers.py'


def datasets(root: Path) -> dict[str, dict[str, Any]]:
    """{name: changes to the config}"""
    parts = root / 'cifar100-subset'
    return {
        'Flowers 102': {},
        'CIFAR-100 (subset)': {
            'dataset.train': dict(type='ImageFolder', path=str(parts / 'train'), _delete_=True),
            'dataset.val': None,
            'dataset.test': dict(type='ImageFolder', path=str(parts / 'test'), _delete_=True),
            'evaluation.holdout': 0.2,
        },
    }


def options(root: Path, pixels: int, epochs: int) -> dict[str, Any]:
    return {
        'model.backbone.checkpoint': str(root / 'weights' / 'deit_tiny_patch16_224.safetensors'),
        'model.backbone.kwargs': dict(img_size=pixels),
        'model.backbone.preprocessing': dict(size=pixels),
        'train.max_epochs': epochs,
        'train.dataloader.workers_per_gpu': 0,
        'train.cache_images': True,
        'train.precision': 'fp32',
        'evaluation.dataloader.workers_per_gpu': 0,
        'evaluation.before': False,
        'evaluation.report': False,
        'evaluation.every': 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data-root', type=Path, required=True)
    parser.add_argument('--minutes', type=float, default=12.0, help='of each search (default: %(default)g)')
    parser.add_argument('--pixels', type=int, default=112)
    parser.add_argument('--epochs', type=int, default=9)
    parser.add_argument('--only', nargs='+', help='the data sets')
    record.add_output(parser, RESULTS)
    args = parser.parse_args()
    path = record.output(args)
    root = args.data_root.absolute()
    runs = json.loads(path.read_text())['runs'] if path.is_file() else []
    for name, changes in datasets(root).items():
        if args.only and name not in args.only or name in [run['data'] for run in runs]:
            continue
        chosen = options(root, args.pixels, args.epochs) | changes
        with tempfile.TemporaryDirectory() as folder:
            default = build_trainer(
                model=CONFIG,
                cfg_options=chosen,
                data_root=root,
                work_dir=Path(folder) / 'default',
                device='cpu',
            )
            usual = default.train()
            found = tune(
                str(CONFIG),
                Path(folder) / 'search',
                Options(minutes=args.minutes, device='cpu', data_root=str(root), cfg_options=chosen),
            )
        print(name, usual['accuracy'], found.says(), flush=True)
        runs.append(
            dict(
                data=name,
                default=usual['accuracy'],
                default_validation=usual['validation'],
                winner=found.summary['accuracy'],
                candidate=found.winner.candidate,
                rate=found.winner.rate,
                validation=found.winner.value,
                trials=len(found.tried),
                whole=sum(tried.is_whole for tried in found.tried),
                environment=describe(default.accelerator.device),
            )
        )
        settings = dict(minutes=args.minutes, pixels=args.pixels, epochs=args.epochs)
        record.write(path, dict(settings=settings, runs=runs))


if __name__ == '__main__':
    main()
