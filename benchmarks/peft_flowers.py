"""Compares LoRA of vet with LoRA of PEFT: DeiT-Tiny on Oxford Flowers 102, by the same recipe.

    python benchmarks/peft_flowers.py --data-root DIR --checkpoint deit_tiny_patch16_224.safetensors
    python benchmarks/peft_flowers.py --data-root DIR --checkpoint … --time

The recipe is configs/deit_tiny_lora_flowers.py at --pixels for --epochs. vet's side is the trainer. PEFT's
side is PEFT's model in a plain torch loop. Both sides start from the same numbers: PEFT reads the adapter
that vet wrote before the first step. Both sides see the same crops in the same order. Both sides have the
same rank, alpha, places, optimizer, decay, warmup, schedule, batch and precision. Each side trains on the
1,020 official training images. Each side is tested once, after the last epoch, on the 6,149 official test
images.

The first command measures accuracy, and writes results/peft_flowers.json. The same command again runs only
the missing runs.

--time measures seconds: one epoch, without a test. The sides take turns. Seconds include reading. Nothing
else should run on the machine. The script writes results/peft_flowers_time.json.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from peft import PeftModel
from torch import nn

from vet import build_trainer
from vet.benchmark import record
from vet.engine.evaluate import score
from vet.engine.feed.door import Order, load
from vet.engine.optim import lr_factor
from vet.engine.trainer import Trainer
from vet.environment import describe
from vet.hub import save_peft
from vet.transforms.torchvision import build_transform

RESULTS = Path(__file__).parent / 'results'
CONFIG = Path(__file__).parents[1] / 'configs' / 'deit_tiny_lora_flowers.py'


def make_trainer(args: argparse.Namespace, seed: int, folder: str) -> Trainer:
    """vet's side, before its first step."""
    options: dict[str, Any] = {
        'model.backbone.checkpoint': args.checkpoint,
        'model.backbone.kwargs.img_size': args.pixels,
        'train.max_epochs': args.epochs,
        'train.precision': 'fp32',
        'evaluation.before': False,
        'dataset.val': None,
        'train.dataloader.workers_per_gpu': args.workers,
        'evaluation.dataloader.workers_per_gpu': args.workers,
    }
    if args.time:
        options['dataset.test'] = None
    return build_trainer(
        model=str(CONFIG),
        work_dir=folder,
        data_root=args.data_root,
        device=args.device,
        seed=seed,
        cfg_options=options,
    )


def with_vet(trainer: Trainer, args: argparse.Namespace) -> dict[str, Any]:
    summary = trainer.train()
    return dict(seconds=summary['train_seconds'], accuracy=summary.get('accuracy'))


def with_peft(trainer: Trainer, args: argparse.Namespace) -> dict[str, Any]:
    """PEFT's model in a plain loop. `trainer`, which is not trained, says the recipe."""
    train = trainer.settings.train
    evaluation = trainer.settings.evaluation
    data = trainer.data
    preprocessing = vars(trainer.model.backbone.preprocessing)
    device = trainer.accelerator.device
    model = same_start(trainer, args).to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            dict(
                params=[parameter for parameter in trained if parameter.ndim > 1],
                weight_decay=train.optimizer['weight_decay'],
            ),
            dict(params=[parameter for parameter in trained if parameter.ndim == 1], weight_decay=0.0),
        ],
        lr=train.optimizer['lr'],
    )
    order = Order(len(data['train']), train.dataloader.batch_size_per_gpu, 1, trainer.settings.seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(train.lr_scheduler, (step + 0.5) / order.steps)
    )
    keys = [key for epoch in range(train.max_epochs) for key in order.keys(epoch)]
    crops = {None: build_transform(train.transform, **preprocessing)}
    batches = load(data['train'], crops, trainer.settings.seed, keys, args.workers, device)
    began = time.perf_counter()
    model.train()
    for batch in batches:
        loss = nn.functional.cross_entropy(model(batch.images), batch.labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - began
    if data.get('test') is None:
        return dict(seconds=seconds, accuracy=None)
    view = build_transform(evaluation.transform, **preprocessing)
    scores, labels = score(
        model, data['test'], view, trainer.accelerator, evaluation.dataloader.batch_size_per_gpu, args.workers
    )
    return dict(seconds=seconds, accuracy=float((scores.argmax(1) == labels).mean()))


def same_start(trainer: Trainer, args: argparse.Namespace) -> nn.Module:
    """PEFT's model with the numbers that vet's model has now."""
    network = timm.create_model(
        'deit_tiny_patch16_224', img_size=args.pixels, num_classes=len(trainer.model.classes)
    )
    rest = network.load_state_dict(trainer.model.backbone.network.state_dict(), strict=False)
    assert not rest.unexpected_keys and set(rest.missing_keys) == {'head.weight', 'head.bias'}, rest
    with tempfile.TemporaryDirectory() as folder:
        save_peft(trainer.model, Path(folder) / 'adapter')
        model = PeftModel.from_pretrained(network, str(Path(folder) / 'adapter'), is_trainable=True)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == trainer.model.count()['trainable'], trained
    return model


SIDES = {'PEFT': with_peft, 'vet': with_vet}


def show(runs: list[dict[str, Any]]) -> None:
    for side in SIDES:
        own = [run for run in runs if run['side'] == side]
        accuracies = [100 * run['accuracy'] for run in own if run.get('accuracy') is not None]
        seconds = [run['seconds'] for run in own if run.get('seconds') is not None]
        print(
            side,
            *(f'{one:.2f} %' for one in accuracies),
            *(f'{one:.1f} s' for one in seconds),
            f'median {statistics.median(accuracies or seconds):.2f}',
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data-root', required=True)
    parser.add_argument('--checkpoint', required=True)
    parser.add_argument(
        '--seeds', nargs='+', type=int, default=[0, 1, 2], help='with --time: one round a seed'
    )
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--pixels', type=int, default=64)
    parser.add_argument('--workers', type=int, default=0)
    parser.add_argument('--time', action='store_true')
    parser.add_argument('--device', default='cpu')
    record.add_output(parser, RESULTS / 'peft_flowers.json')
    args = parser.parse_args()
    if args.time:
        args.epochs, args.output = 1, args.output.with_name(f'{args.output.stem}_time.json')
    path = record.output(args)
    kept = 'seconds' if args.time else 'accuracy'
    environment = describe(torch.device(args.device))
    settings = dict(epochs=args.epochs, pixels=args.pixels)
    before = (
        json.loads(path.read_text()) if path.exists() and not args.time else dict(settings=settings, runs=[])
    )
    runs = before['runs'] if before['settings'] == settings else []
    for seed, side in itertools.product(args.seeds, SIDES):
        if any((run['side'], run['seed']) == (side, seed) for run in runs):
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = SIDES[side](make_trainer(args, seed, folder), args)
        runs.append(dict(side=side, seed=seed, **{kept: found[kept]}, environment=environment))
        print(side, seed, found[kept], flush=True)
        record.write(path, dict(settings=settings, runs=runs))
    show(runs)


if __name__ == '__main__':
    main()
