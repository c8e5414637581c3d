"""Measures vet on a GPU, in one command of at most 8 minutes.

    python benchmarks/speed/gpu.py
    python benchmarks/speed/gpu.py --mini --trial

The first command needs a CUDA device. --mini runs everything but compilers, on small networks and a CPU, and
only shows that the script works. The parts are:

- tuners: the images per second of 1 to 256 tuners mixed in one forward, against merged networks;
- images: the images per second of a training on photos, with transforms in workers, and with the images
  resident on the GPU;
- steps: the training step of ViT-B/16, ViT-L/14 and ResNet-50 in bf16, and of ViT-B/16 in float8, beside
  PEFT's, eager, compiled and with CUDA graphs, with the peak of memory, as in steps.py.

When the time of --minutes has passed, no further part begins. Writes the entry of this host, see hosts.py.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import torch
from many_tuners import merge, synchronise, tuned
from PIL import Image
from rich.console import Console
from rich.table import Table
from steps import CONVOLUTIONS, Job, measure
from steps import shown as shown_steps

from vet import build_trainer
from vet.benchmark import record
from vet.core.tuned_model import TunedModel
from vet.datasets.image_folder import ImageFolder
from vet.environment import describe
from vet.errors import UserError
from vet.registry import BACKBONES

JOBS = {
    'ViT-B/16, bf16': Job('vit_base_patch16_224', 'bf16', 8, batch_on_gpu=128),
    'ResNet-50, bf16': Job('resnet50', 'bf16', 8, batch_on_gpu=128, targets=CONVOLUTIONS),
    'ViT-B/16, fp8': Job('vit_base_patch16_224', 'fp8', 8, batch_on_gpu=128),
    'ViT-L/14, bf16': Job('vit_large_patch14_224', 'bf16', 8, batch_on_gpu=64),
}
MINI = {
    'ViT-Ti/16, bf16': Job('vit_tiny_patch16_224', 'bf16', 2),
    'ResNet-50, bf16': Job('resnet50', 'bf16', 1, targets=CONVOLUTIONS),
}


def steps(args: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Any]]:
    """The steps of each job. Without fp8 on this GPU, the reason."""
    for name, job in (MINI if args.mini else JOBS).items():
        try:
            yield name, measure(job, device, 2 if args.mini else 10, compiled=not args.mini)
        except (
            RuntimeError,
            UserError,
        ) as error:  # the next jobs shall run on a GPU that cannot run this one
            if args.mini:
                raise
            yield name, dict(failed=f'{type(error).__name__}: {str(error)[:300]}')
        torch.cuda.empty_cache()


def photos(folder: Path, count: int) -> None:
    """Random JPEGs of two classes."""
    draw = np.random.default_rng(0)
    for number in range(count):
        pixels = Image.fromarray(draw.integers(0, 256, (24, 32, 3), np.uint8)).resize((400, 300))
        path = folder / 'train' / 'ab'[number % 2] / f'{number}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels.save(path)


def images(args: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Any]]:
    """The images per second of the second epoch, by the place of the transforms."""
    count, model = (16, 'vit_tiny_patch16_224') if args.mini else (2048, 'vit_base_patch16_224')
    with tempfile.TemporaryDirectory() as home:
        photos(Path(home) / 'photos', count)
        for place in ('pil', 'tensor', 'device'):
            data = ImageFolder(Path(home) / 'photos', 'train')
            trainer = build_trainer(
                model=dict(
                    model=dict(
                        backbone=dict(type='timm', name=model, pretrained=False), tuners=[dict(type='LoRA')]
                    ),
                    dataset={},
                    train=dict(
                        max_epochs=2,
                        precision='bf16',
                        cache_images=True,
                        transform_on=place,
                        log_every=1,
                        dataloader=dict(batch_size_per_gpu=min(128, count), workers_per_gpu=args.workers),
                    ),
                    evaluation=dict(before=False, report=False),
                ),
                train_dataset=data,
                work_dir=Path(home) / place,
                device=str(device),
            )
            ends: list[float] = []
            trainer.add_hook(EndsOfEpochs(ends, device))
            trainer.train()
            yield place, dict(images=count, seconds=ends[1] - ends[0])


class EndsOfEpochs:
    """A hook that notes when epochs end."""

    def __init__(self, ends: list[float], device: torch.device):
        self.ends = ends
        self.device = device

    def after_train_epoch(self, runner: object) -> None:
        synchronise(self.device)
        self.ends.append(time.perf_counter())


def tuners(args: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Any]]:
    """Rounds of a batch of images, one tuner after the other: mixed, and each group in a merged network."""
    name = 'vit_tiny_patch16_224' if args.mini else 'vit_small_patch16_224'
    counts, size, rounds = ((1, 2), 4, 1) if args.mini else ((1, 8, 64, 256), 256, 5)
    backbone = BACKBONES.build(dict(type='timm', name=name, pretrained=False)).to(device).eval()
    batch = torch.randn(size, 3, *backbone.preprocessing.size, device=device)
    for count in counts:
        names = [f'tuner {i}' for i in range(count)]
        model = TunedModel(backbone, {each: tuned(backbone, i).to(device) for i, each in enumerate(names)})
        whose = [names[i % count] for i in range(size)]
        merged = merge(model.tasks[names[0]])  # one stands for all: its time is theirs
        groups = [batch[i::count] for i in range(min(count, size))]
        found: dict[str, list[float]] = dict(mixed=[], merged=[])
        with torch.inference_mode():
            for _ in range(rounds + 1):
                began = time.perf_counter()
                model(batch, whose)
                synchronise(device)
                middle = time.perf_counter()
                for group in groups:
                    merged(group)
                synchronise(device)
                found['mixed'].append(middle - began)
                found['merged'].append(time.perf_counter() - middle)
        yield str(count), dict(images=size, seconds={side: spent[1:] for side, spent in found.items()})


PARTS = dict(tuners=tuners, images=images, steps=steps)


def shown(found: dict[str, Any]) -> list[Table]:
    """The tables of all parts."""
    tables = []
    for name, one in found.get('steps', {}).items():
        if 'failed' not in one:
            tables.append(shown_steps(name, one))
    if 'images' in found:
        table = Table('transforms', 'images / s', title='Training on photos that are kept, second epoch')
        for place, one in found['images'].items():
            table.add_row(place, f'{one["images"] / one["seconds"]:.1f}')
        tables.append(table)
    if 'tuners' in found:
        table = Table('tuners', 'mixed, images / s', 'merged, images / s', 'mixed / merged', title='Tuners')
        for count, one in found['tuners'].items():
            mixed, merged = (one['images'] / min(one['seconds'][side]) for side in ('mixed', 'merged'))
            table.add_row(count, f'{mixed:.1f}', f'{merged:.1f}', f'{mixed / merged:.2f}')
        tables.append(table)
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--mini', action='store_true', help='small networks on a CPU')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    parser.add_argument('--minutes', type=float, default=6.0)
    parser.add_argument('--workers', type=int, default=None)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    record.add_output(parser, hosts.default(device.type))
    args = parser.parse_args()
    device = torch.device('cpu') if args.mini else device
    if device.type == 'cpu' and not args.mini:
        parser.error('there is no CUDA device; --mini --trial shows on a CPU that the script works')
    if args.workers is None:
        args.workers = 0 if args.mini else 4
    path = record.output(args)
    began = time.perf_counter()
    environment = describe(device)
    found: dict[str, Any] = dict(environment=environment)
    for name in args.parts:
        entries = PARTS[name](args, device)
        while time.perf_counter() - began < 60 * args.minutes and (entry := next(entries, None)):
            found.setdefault(name, {})[entry[0]] = entry[1]
            hosts.keep(path, 'gpu', found)
            print(
                f'{name}, {entry[0]}: {time.perf_counter() - began:.0f} s',
                entry[1].get('failed', ''),
                flush=True,
            )
    for table in shown(found):
        Console(width=150).print(table)


if __name__ == '__main__':
    main()
