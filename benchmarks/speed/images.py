"""Compares images that are kept decoded with JPEG files that each epoch reads again, and with a usual torch
loader.

    python benchmarks/speed/images.py --data-root DIR --checkpoint deit_tiny_patch16_224.safetensors
    python benchmarks/speed/images.py --data-root DIR --checkpoint … --pixels 112 --images 256 --rounds 1

The second command takes a few minutes. There are three jobs. --jobs chooses among them.

reading: processor time per image of each way to read the training images of Oxford Flowers 102. One process
    of one thread reads, like a worker, without a network. Images come from files or are kept. Crops and flips
    act on PIL images or on tensors (train.transform_on).
epochs: DeiT-Tiny with LoRA r=10 on qkv, random resized crops and flips, batch 64, float32 on a CPU. These
    sides take turns, each in its own process: vet's train() from files; with train.cache_images, beginning
    with an empty cache; the same with each train.transform_on; PEFT in a plain loop; and as many steps of vet
    on a batch in memory. Seconds are those of each epoch, with reading and keeping. Processor time and the
    most memory are those of a whole run, with its workers.
growth: folders of more and more images (JPEGs of 160 pixels on the short side, of which 500 differ), kept
    after a Resize to 128. Each folder has its own process with 2 workers, without a network. Memory grows
    from the listing of the folder to the most that the process holds after any batch. As in train(), glibc's
    own rules decide what memory is given back and where freed memory is kept.

Writes the entry of this host, see hosts.py.
"""

import argparse
import multiprocessing
import os
import random
import re
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import timm
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Subset
from torchvision import datasets
from torchvision.transforms import v2

from vet import build_trainer
from vet.benchmark import record
from vet.datasets.flowers102 import Flowers102
from vet.datasets.hold_out import Part
from vet.datasets.image_folder import ImageFolder
from vet.engine.fast.door import freed_memory_kept
from vet.engine.feed.door import Batch, Order, load
from vet.engine.feed.image_cache import cached_images
from vet.engine.learner import Learner
from vet.engine.meter import Meter
from vet.engine.saving.door import read_log
from vet.environment import describe
from vet.transforms.torchvision import build_transform, on_tensors, split_still

CPU = torch.device('cpu')
BATCH = 64
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CROPS = [dict(type='RandomResizedCrop', scale=[0.4, 1.0]), dict(type='RandomHorizontalFlip')]
VIEWS = {
    'random resized crop, flip': CROPS,
    'resize, random resized crop, flip': [dict(type='Resize', size=160), *CROPS],
    'resize, centre crop, flip': [dict(type='EvaluationCrop'), dict(type='RandomHorizontalFlip')],
}


def batches(length: int, epoch: int = 0) -> list[list[tuple[int, int, int]]]:
    return list(Order(length, BATCH, 1, seed=0).keys(epoch))


def read_through(dataset: Any, view: Callable) -> float:
    """Processor seconds of this process."""
    began = time.process_time()
    for _ in load(dataset, {None: view}, 0, batches(len(dataset)), 0, CPU):
        pass
    return time.process_time() - began


def reading(args: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, entries in VIEWS.items():
        view = build_transform(entries, (args.pixels, args.pixels), MEAN, STD, 0.9, 'bicubic')
        dataset = Part(
            whole := Flowers102(args.data_root, 'train'), range(args.images), whole.targets[: args.images]
        )
        still, rest = split_still(view)
        with tempfile.TemporaryDirectory() as folder:
            os.environ['VET_CACHE_DIR'] = folder
            keeping = time.process_time()
            kept = cached_images(dataset, still)
            keeping = time.process_time() - keeping
            ways: dict[str, tuple[Any, Callable]] = {
                'files': (dataset, view),
                'files, tensors': (dataset, on_tensors(view)),
                'kept': (kept, rest),
                'kept, tensors': (cached_images(dataset, still, as_tensors=True), on_tensors(rest)),
            }
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(args.rounds + 1):
                for way, (data, seen) in ways.items():
                    times[way].append(read_through(data, seen))
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
            found.append(
                dict(
                    view=name,
                    images=args.images,
                    keeping=keeping,
                    bytes=size,
                    seconds={way: seconds[1:] for way, seconds in times.items()},  # the first warms up
                )
            )
    torch.set_num_threads(threads)
    return found


def with_vet(args: argparse.Namespace, steps_alone: bool = False, **options: Any) -> list[float]:
    """Seconds of each epoch of train(), or of as many steps on a batch in memory."""
    dataset = Flowers102(args.data_root, 'train')
    with tempfile.TemporaryDirectory() as folder:
        os.environ['VET_CACHE_DIR'] = folder
        trainer = build_trainer(
            model=dict(
                model=dict(
                    backbone=dict(
                        type='timm',
                        name='deit_tiny_patch16_224.fb_in1k',
                        checkpoint=args.checkpoint,
                        kwargs=dict(img_size=args.pixels),
                        lora_length=10,
                    )
                ),
                train=dict(
                    max_epochs=args.epochs,
                    transform=CROPS,
                    log_every=10**6,
                    **options,
                    dataloader=dict(batch_size_per_gpu=BATCH, workers_per_gpu=args.workers),
                ),
                evaluation=dict(before=False),
            ),
            train_dataset=Part(dataset, range(args.images), dataset.targets[: args.images]),
            work_dir=Path(folder) / 'run',
            device=args.device,
        )
        if not steps_alone:
            trainer.train()
            return [args.images / record['images_per_second'] for record in read_log(Path(folder) / 'run')]
        order = Order(args.images, BATCH, 1, 0)
        device = trainer.accelerator.device
        seconds = []
        images = torch.randn(BATCH, 3, args.pixels, args.pixels, device=device)
        labels = torch.arange(BATCH, device=device)
        meter = Meter(device)
        learner = Learner(trainer.model, trainer.settings.train, order, trainer.accelerator)
        with freed_memory_kept(device):
            for epoch in range(args.epochs):
                began = time.perf_counter()
                for i, listed in enumerate(order.keys(epoch)):
                    batch = Batch(
                        images[: len(listed)], labels[: len(listed)], torch.ones(len(listed), device=device)
                    )
                    learner.step([batch], epoch * order.steps + i, meter)
                meter.read(trainer.accelerator)  # waits for the device
                seconds.append(time.perf_counter() - began)
        return seconds


def with_peft(args: argparse.Namespace) -> list[float]:
    """PEFT as its users write it."""
    torch.manual_seed(0)
    model = timm.create_model(
        'deit_tiny_patch16_224',
        pretrained=True,
        pretrained_cfg_overlay=dict(file=args.checkpoint),
        img_size=args.pixels,
    )
    model.reset_classifier(102)
    targets = LoraConfig(r=10, lora_alpha=10, target_modules=['qkv'], modules_to_save=['head'])
    model = get_peft_model(model, targets).to(args.device).train()
    view = v2.Compose(
        [
            v2.RandomResizedCrop(args.pixels, (0.4, 1), interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    train = Subset(datasets.Flowers102(args.data_root, 'train', transform=view), range(args.images))
    read = DataLoader(
        train,
        BATCH,
        shuffle=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        pin_memory=args.device == 'cuda',
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    seconds = []
    for _ in range(args.epochs):
        began = time.perf_counter()
        for images, labels in read:
            with torch.autocast(args.device, torch.bfloat16, enabled=args.device == 'cuda'):
                loss = torch.nn.functional.cross_entropy(
                    model(images.to(args.device, non_blocking=True)),
                    labels.to(args.device, non_blocking=True),
                )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if args.device == 'cuda':
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds


def processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


SIDES: dict[str, Callable[[argparse.Namespace], list[float]]] = {
    'vet, steps alone': partial(with_vet, steps_alone=True),
    'vet, files': with_vet,
    'vet, kept': partial(with_vet, cache_images=True),
    'vet, kept, tensors': partial(with_vet, cache_images=True, transform_on='tensor'),
    'vet, kept, on the device': partial(with_vet, cache_images=True, transform_on='device'),
    'peft': with_peft,
}


def whole_run(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """Of a child process."""
    began = processor_seconds()
    seconds = SIDES[side](args)
    return dict(
        seconds=seconds,
        processor=processor_seconds() - began,
        peak=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )


def alone(run: Callable, *args: Any) -> Any:
    """What `run` gives in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), fork) as pool:
        return pool.submit(run, *args).result()


def fork() -> None:
    """The workers of a spawned process too, which would import all anew."""
    multiprocessing.set_start_method('fork', force=True)


def epochs(args: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(args.rounds):
        for side in random.Random(number).sample(list(SIDES), len(SIDES)):
            runs[side].append(alone(whole_run, side, args))
            print(side, runs[side][-1], flush=True)
    return dict(images=args.images, pixels=args.pixels, workers=args.workers, batch=BATCH, runs=runs)


def held() -> int:
    """Bytes of memory that this process holds for itself: pages of files and of other processes are not
    among them.
    """
    return 1024 * int(re.findall(r'RssAnon:\s*(\d+)', Path('/proc/self/status').read_text())[0])


def grow(folder: str, count: int, keeps: bool) -> dict[str, Any]:
    """Of a child process: keeps a folder's images and reads them twice."""
    os.environ['VET_CACHE_DIR'] = f'{folder}/cache'
    torch.set_num_threads(1)
    view = build_transform([dict(type='Resize', size=128), *CROPS], (112, 112), MEAN, STD, 0.9, 'bicubic')
    still, rest = split_still(view)
    seconds = {}
    memory = []
    clock = processor_seconds
    began = clock()
    dataset = ImageFolder(f'{folder}/{count}')
    base = held()
    with freed_memory_kept(CPU) if keeps else nullcontext():
        seconds['listing'], began = clock() - began, clock()
        kept = cached_images(dataset, still, workers=2)
        seconds['keeping'], began = clock() - began, clock()
        cached_images(dataset, still)
        seconds['finding'] = clock() - began
        for epoch in range(2):
            began = clock()
            for _ in load(kept, {None: rest}, 0, batches(count, epoch), 2, CPU):
                memory.append(held())
            seconds[f'epoch {epoch + 1}'] = clock() - began
    return dict(images=count, seconds=seconds, grown=max(memory) - base)


def growth(args: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / 'source'
        source.mkdir()
        for i in range(500):
            blobs = Image.fromarray(draw.integers(0, 256, (8, 10, 3), np.uint8))
            blobs.resize((200, 160), Image.Resampling.BICUBIC).save(source / f'{i}.jpg')
        for count in args.counts:
            home = Path(folder) / str(count) / 'a'
            home.mkdir(parents=True)
            for i in range(count):
                os.link(source / f'{i % 500}.jpg', home / f'{i}.jpg')
            rows = []
            for keeps in (False, True):
                rows.append(alone(grow, folder, count, keeps))
                for path in (Path(folder) / 'cache').iterdir():
                    path.unlink()
            found.append(rows[0] | dict(grown_where_kept=rows[1]['grown']))
            print(found[-1], flush=True)
    return found


def show_reading(found: list[dict[str, Any]]) -> Table:
    table = Table(
        'transform',
        *(f'{way}, ms' for way in found[0]['seconds']),
        'keeping once, ms',
        'bytes kept',
        title='Reading: processor time per image, normalisation included, median',
    )
    for row in found:
        times = [1e3 * statistics.median(seconds) / row['images'] for seconds in row['seconds'].values()]
        table.add_row(
            row['view'],
            *(f'{milliseconds:.2f}' for milliseconds in times),
            f'{1e3 * row["keeping"] / row["images"]:.2f}',
            f'{row["bytes"] / row["images"]:,.0f}',
        )
    return table


def show_epochs(found: dict[str, Any]) -> Table:
    count = len(found['runs']['peft'][0]['seconds'])
    table = Table(
        'side',
        *(f'epoch {i + 1}, s' for i in range(count)),
        'all, x PEFT',
        'steps alone / later epochs',
        'processor, s',
        'most memory, MB',
        title=f'{found["images"]} images of {found["pixels"]} pixels an epoch; '
        f'medians over {len(found["runs"]["peft"])} rounds',
    )
    for side, runs in found['runs'].items():
        pairs = list(zip(runs, found['runs']['peft'], found['runs']['vet, steps alone']))
        epochs = zip(*(run['seconds'][:count] for run in runs))
        table.add_row(
            side,
            *(f'{seconds:.1f}' for seconds in map(statistics.median, epochs)),
            f'{statistics.median(sum(own["seconds"]) / sum(peft["seconds"]) for own, peft, _ in pairs):.2f}',
            f'{statistics.median(_late(steps) / _late(own) for own, _, steps in pairs):.2f}',
            f'{statistics.median(run["processor"] for run in runs):.1f}',
            f'{statistics.median(run["peak"] for run in runs) / 1e6:.0f}',
        )
    return table


def _late(run: dict[str, Any]) -> float:
    """The seconds of all epochs except the first."""
    return sum(run['seconds'][1:])


def show_growth(found: list[dict[str, Any]]) -> Table:
    table = Table(
        'images',
        *(f'{name}, ms' for name in found[0]['seconds']),
        'memory grows by, MB',
        'as in train(), MB',
        title='Growth: processor time per image, workers included',
    )
    for row in found:
        table.add_row(
            f'{row["images"]:,}',
            *(f'{1e3 * seconds / row["images"]:.3f}' for seconds in row['seconds'].values()),
            f'{row["grown"] / 1e6:.0f}',
            f'{row["grown_where_kept"] / 1e6:.0f}',
        )
    return table


JOBS = {'reading': (reading, show_reading), 'epochs': (epochs, show_epochs), 'growth': (growth, show_growth)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data-root')
    parser.add_argument('--checkpoint')
    parser.add_argument('--jobs', nargs='+', choices=JOBS, default=list(JOBS))
    parser.add_argument('--images', type=int, default=1020, help='of the 1,020 training images')
    parser.add_argument('--pixels', type=int, default=224)
    parser.add_argument('--epochs', type=int, default=3)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--counts', nargs='+', type=int, default=[1_000, 3_000, 10_000, 30_000, 100_000])
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    record.add_output(parser, hosts.default())
    args = parser.parse_args()
    if (
        set(args.jobs) & {'reading', 'epochs'}
        and not args.data_root
        or 'epochs' in args.jobs
        and not args.checkpoint
    ):
        parser.error('the jobs reading and epochs need --data-root, and epochs needs --checkpoint')
    path = record.output(args)
    results = hosts.read(path, 'images')
    environment = describe(torch.device(args.device))
    for name in args.jobs:
        run, show = JOBS[name]
        found = run(args)
        results[name] = dict(found=found, environment=environment)
        hosts.keep(path, 'images', results)
        Console(width=150).print(show(found))


if __name__ == '__main__':
    main()
