"""Compares a linear probe of many epochs, with cached features, with one pass over the images.

    python benchmarks/speed/probe.py --data-root DIR --checkpoint deit_tiny_patch16_224.safetensors
    python benchmarks/speed/probe.py --data-root DIR --model vit_small_patch16_224 --rounds 2

Without --checkpoint the weights are random. The images are the training images of Oxford Flowers 102 or of
DIR/cifar100-subset, without augmentation. The cache is empty. One pass is the same run without the cache, for
one epoch. Seconds are those of `train()`, which reads the images, computes the features, writes them and
trains. Nothing is tested. The two sides take turns. Writes the entry of this host,
see hosts.py, by model and dataset.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import hosts
import torch
from rich.console import Console
from rich.table import Table

from vet import build_trainer
from vet.benchmark import record
from vet.environment import describe

DATASETS = {
    'flowers-102': dict(type='Flowers102', split='train'),
    'cifar100-subset': dict(type='ImageFolder', path='cifar100-subset', split='train'),
}


def seconds(args: argparse.Namespace, epochs: int, cached: bool) -> float:
    with tempfile.TemporaryDirectory() as folder:
        os.environ['VET_CACHE_DIR'] = folder
        config = dict(
            model=dict(
                backbone=dict(
                    type='timm',
                    name=args.model,
                    checkpoint=args.checkpoint,
                    pretrained=args.checkpoint is not None,
                    kwargs=dict(img_size=args.pixels),
                ),
                tuners=[dict(type='LinearProbe')],
                head=dict(type='Linear'),
            ),
            dataset=dict(train=DATASETS[args.dataset]),
            train=dict(
                max_epochs=epochs,
                cache_features=cached,
                transform=[dict(type='Resize'), dict(type='CenterCrop')],
                dataloader=dict(batch_size_per_gpu=64, workers_per_gpu=args.workers),
                checkpoint=dict(every_epochs=25),
            ),
            evaluation=dict(before=False),
            seed=0,
        )
        trainer = build_trainer(
            model=config, work_dir=Path(folder) / 'run', data_root=args.data_root, device=args.device
        )
        began = time.perf_counter()
        trainer.train()
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data-root', required=True, metavar='DIR')
    parser.add_argument('--model', default='deit_tiny_patch16_224')
    parser.add_argument('--checkpoint', metavar='FILE', help='its weights; random ones where not given')
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--dataset', choices=DATASETS, default='flowers-102')
    parser.add_argument('--pixels', type=int, default=224)
    parser.add_argument('--workers', type=int, default=0)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    record.add_output(parser, hosts.default())
    args = parser.parse_args()
    path = record.output(args)
    runs = [(seconds(args, 1, False), seconds(args, args.epochs, True)) for _ in range(args.rounds)]
    found = dict(
        runs=runs,
        model=args.model,
        epochs=args.epochs,
        pixels=args.pixels,
        dataset=args.dataset,
        environment=describe(torch.device(args.device)),
    )
    results = hosts.read(path, 'probe')
    hosts.keep(path, 'probe', results | {f'{args.model}, {args.dataset}': found})
    Console().print(shown(found))


def shown(found: dict) -> Table:
    table = Table(
        'one pass, s',
        f'{found["epochs"]} epochs, cached, s',
        'ratio',
        title=f'Linear probe, {found["model"]}, {found["dataset"]} at {found["pixels"]} pixels',
    )
    for one, cached in found['runs']:
        table.add_row(f'{one:.1f}', f'{cached:.1f}', f'{cached / one:.2f}')
    table.add_row('', 'median', f'{statistics.median(cached / one for one, cached in found["runs"]):.2f}')
    return table


if __name__ == '__main__':
    main()
