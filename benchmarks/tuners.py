"""Measures every tuner on DeiT-Tiny and a part of CIFAR-100 (subset), by one recipe: accuracy, size, time,
memory.

    python benchmarks/tuners.py --data-root DIR --checkpoint deit_tiny_patch16_224.safetensors
    python benchmarks/tuners.py --data-root DIR --checkpoint … --only LoRA VPT-deep --train-per-class 2 \
        --epochs 1 --trial
    python benchmarks/tuners.py --data-root DIR --checkpoint … --time

The recipe is configs/_base_/recipes/vet.py (AdamW, random resized crops, flips), with one learning rate for
all. A tuner that needs another rate can do better than here. The script trains on the first images of each
class in DIR/cifar100-subset/train. After the last epoch, it tests once on the first images of each class in
…/test. Each tuner has its own process, whose result is written at once. The same command again runs only the
missing tuners. --time measures only the seconds of all trained tuners again, one after another.

seconds: of an optimizer step on a batch in memory, the median of 9 steps after 3.
saved: what autograd keeps of one step for its backward pass, each storage once, without the model's own
    parameters and buffers.
peak: the process's memory at the end of training, with torch and the data.
folder: bytes of the model folder, with a head of 100 classes.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table

from vet import build_trainer
from vet.benchmark import record
from vet.benchmark.suite import load_suite
from vet.config import load_config
from vet.datasets.base import ImageDataset
from vet.datasets.image_folder import ImageFolder
from vet.engine.feed.door import Batch, Order
from vet.engine.learner import Learner
from vet.engine.meter import Meter
from vet.engine.trainer import Trainer
from vet.environment import describe

HERE = Path(__file__).parent
WARMUP = 3
TIMED = 9
# the forms of the suite methods
TUNERS: dict[str, list[dict]] = {
    name: entry['tuners'] for name, entry in load_suite(HERE / 'suites' / 'methods.py').tuners.items()
}


def measure(name: str, args: argparse.Namespace) -> dict:
    """Trains one tuner, in this process, and says what it cost; with --time, only what a step costs."""
    recipe = load_config(HERE.parent / 'configs/_base_/recipes/vet.py')
    recipe.merge_from_dict(
        {
            'model': dict(
                backbone=dict(
                    type='timm',
                    name='deit_tiny_patch16_224.fb_in1k',
                    checkpoint=args.checkpoint,
                    kwargs=dict(img_size=args.pixels),
                ),
                tuners=TUNERS[name],
                head=dict(type='Linear'),
            ),
            'train.max_epochs': args.epochs,
            'train.optimizer.lr': args.lr,
            'train.dataloader.workers_per_gpu': 0,
            'evaluation.dataloader': dict(batch_size_per_gpu=64, workers_per_gpu=0),
            'evaluation.before': False,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(
            model=recipe,
            work_dir=folder,
            seed=args.seed,
            device='cpu',
            train_dataset=subset(args.data_root, 'train', args.train_per_class),
            eval_dataset=subset(args.data_root, 'test', args.test_per_class),
        )
        if args.time:
            return cost_of_a_step(trainer)
        summary = trainer.train()
        folder_bytes = sum(path.stat().st_size for path in Path(summary['output']).iterdir())
    return dict(
        tuners=TUNERS[name],
        accuracy=summary['accuracy'],
        parameters=summary['parameters']['tuners'],
        peak_mb=summary['peak_memory_mb'],
        folder_bytes=folder_bytes,
        **cost_of_a_step(trainer),
    )


def subset(data_root: str, split: str, per_class: int) -> ImageDataset:
    """The first images of each class, in the order of their names."""
    whole = ImageFolder(data_root, split, path='cifar100-subset')
    classes = itertools.groupby(
        sorted(whole.samples, key=lambda sample: sample[::-1]), key=lambda sample: sample[1]
    )
    return ImageDataset(
        whole.classes, [sample for _, samples in classes for sample in itertools.islice(samples, per_class)]
    )


def cost_of_a_step(trainer: Trainer) -> dict:
    """Seconds of one optimizer step, and bytes that its forward keeps for its backward."""
    model: Any = trainer.model
    train = trainer.settings.train
    seconds = []
    size = train.dataloader.batch_size_per_gpu
    torch.manual_seed(0)
    images = torch.randn(size, 3, *model.backbone.preprocessing.size)
    batch = Batch(images, torch.arange(size) % len(model.classes), torch.ones(size))
    learner = Learner(
        model, train, Order(size * (WARMUP + TIMED + 1), size, 1, trainer.settings.seed), trainer.accelerator
    )
    own = {
        tensor.untyped_storage().data_ptr() for tensor in itertools.chain(model.parameters(), model.buffers())
    }
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    for step in range(WARMUP + TIMED):
        began = time.perf_counter()
        learner.step([batch], step, Meter(torch.device('cpu')))
        seconds.append(time.perf_counter() - began)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        learner.step([batch], WARMUP + TIMED, Meter(torch.device('cpu')))
    learner.close()
    return dict(seconds=statistics.median(seconds[WARMUP:]), saved_bytes=sum(saved.values()))


def in_a_process(name: str) -> dict | None:
    """`measure`, by this command again, in a process of its own; None where it fails, which has then
    been said.
    """
    with tempfile.NamedTemporaryFile('r', suffix='.json') as file:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], '--measure', name, '--into', file.name]
        )
        return json.load(file) if done.returncode == 0 else None


def show(runs: dict[str, dict]) -> None:
    table = Table(
        'tuner',
        *(
            Column(header, justify='right')
            for header in ('accuracy, %', 'parameters', 's / step', 'saved, MB', 'peak, MB', 'folder, kB')
        ),
    )
    for name, run in runs.items():
        table.add_row(
            name,
            f'{100 * run["accuracy"]:.2f}',
            f'{run["parameters"]:,}',
            f'{run["seconds"]:.3f}',
            f'{run["saved_bytes"] / 1e6:.1f}',
            f'{run["peak_mb"]:.0f}',
            f'{run["folder_bytes"] / 1e3:.0f}',
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data-root', required=True)
    parser.add_argument('--checkpoint', required=True)
    parser.add_argument('--pixels', type=int, default=64)
    parser.add_argument('--train-per-class', type=int, default=20)
    parser.add_argument('--test-per-class', type=int, default=10)
    parser.add_argument('--epochs', type=int, default=4)
    parser.add_argument('--lr', type=float, default=2e-3)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--only', nargs='+', choices=TUNERS, default=list(TUNERS), metavar='NAME', help=', '.join(TUNERS)
    )
    record.add_output(parser, HERE / 'results' / 'tuners.json')
    parser.add_argument('--time', action='store_true', help='time the steps of what was trained again')
    parser.add_argument('--measure', help=argparse.SUPPRESS)
    parser.add_argument('--into', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        args.into.write_text(json.dumps(measure(args.measure, args)))
        return
    settings = {
        key: getattr(args, key)
        for key in ('pixels', 'train_per_class', 'test_per_class', 'epochs', 'lr', 'seed')
    }
    environment = describe(torch.device('cpu'))
    path = record.output(args)
    found = json.loads(path.read_text()) if path.exists() else dict(settings=settings, runs={})
    if found['settings'] != settings:
        sys.exit(f'{path} was measured with {found["settings"]}; give other --output, or remove it.')
    for name in args.only:
        if (name in found['runs']) == args.time and (
            run := measure(name, args) if args.time else in_a_process(name)
        ):
            found['runs'][name] = found['runs'].get(name, {}) | run | dict(environment=environment)
            record.write(path, found)
    show({name: found['runs'][name] for name in TUNERS if name in found['runs']})
    if missing := [name for name in args.only if name not in found['runs']]:
        sys.exit(f'failed, and will be tried again by the same command: {", ".join(missing)}')


if __name__ == '__main__':
    main()
