"""Measures a batch in which each image names its tuner: one mixed forward against merged networks of each
tuner.

    python benchmarks/speed/many_tuners.py

The tuners are LoRAs (random, rank 10 on qkv) on one backbone with random weights. Time does not depend on
their values. Four sides answer the same batch in turns, once in each round, after one round that does not
count:

- one mixed forward;
- the images grouped by tuner, with one forward per group, on the shared weights;
- the images grouped by tuner, each group on its own merged network;
- the bare backbone, which knows no tuner.

The column of weights says what each side must hold. Prints a table and writes
the entry of this host, see hosts.py.
"""

import argparse
import copy
import statistics
import time

import hosts
import torch
from rich.console import Console
from rich.table import Table

from vet.benchmark import record
from vet.core.assemble import build_classifier
from vet.core.model import ImageClassifier
from vet.core.tuned_model import TunedModel, with_same_weights
from vet.environment import describe
from vet.registry import BACKBONES


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', default='vit_small_patch16_224', help="timm's name (default: %(default)s)")
    parser.add_argument('--tuners', type=int, default=8, metavar='N')
    parser.add_argument('--batch', type=int, default=32, metavar='IMAGES')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--device', default='cpu')
    record.add_output(parser, hosts.default())
    args = parser.parse_args()
    path = record.output(args)

    device = torch.device(args.device)
    backbone = BACKBONES.build(dict(type='timm', name=args.model, pretrained=False)).to(device).eval()
    names = [f'tuner {i}' for i in range(args.tuners)]
    model = TunedModel(backbone, {name: tuned(backbone, i).to(device) for i, name in enumerate(names)})
    merged = {name: merge(one) for name, one in model.tasks.items()}
    images = torch.randn(args.batch, 3, *backbone.preprocessing.size, device=device)
    whose = names * args.batch
    whose = whose[: args.batch]

    def grouped(networks: dict) -> list[torch.Tensor]:
        logits = [torch.empty(0)] * len(images)
        for name in dict.fromkeys(whose):
            rows = [i for i, one in enumerate(whose) if one == name]
            for i, row in zip(rows, networks[name](images[rows])):
                logits[i] = row
        return logits

    sides = {
        'mixed, one forward': lambda: model(images, whose),
        'grouped, shared weights': lambda: grouped(model.tasks),
        'grouped, a merged network each': lambda: grouped(merged),
        'bare backbone': lambda: backbone(images),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    answers = {}
    with torch.inference_mode():
        for _ in range(args.rounds + 1):
            for side, call in sides.items():
                synchronise(device)
                start = time.perf_counter()
                answers[side] = call()
                synchronise(device)
                seconds[side].append(time.perf_counter() - start)
    frozen = size(backbone)
    own = size(model) - size(backbone)
    weights = dict(zip(sides, (frozen + own, frozen + own, sum(map(size, merged.values())), frozen)))
    reference, *others = list(answers.values())[:3]
    found = dict(
        environment=describe(device),
        model=args.model,
        tuners=args.tuners,
        batch=args.batch,
        rounds=args.rounds,
        switch_microseconds=switching(model, names),
        max_difference=max((a - b).abs().max().item() for other in others for a, b in zip(reference, other)),
        sides={
            side: dict(seconds=times[1:], weights_mb=weights[side] / 1e6) for side, times in seconds.items()
        },
    )
    hosts.keep(path, 'many_tuners', found)
    Console().print(shown(found))


def tuned(backbone, seed: int) -> ImageClassifier:
    """A LoRA over the same weights, none of its numbers zero, with a head for 100 classes."""
    torch.manual_seed(seed)
    model = build_classifier(
        with_same_weights(backbone),
        [dict(type='LoRA', rank=10)],
        dict(type='Linear'),
        [str(i) for i in range(100)],
    ).eval()
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def merge(model: ImageClassifier) -> ImageClassifier:
    own = copy.deepcopy(model)
    own.merge()
    return own


def size(module: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def switching(model: TunedModel, names: list[str]) -> float:
    """The microseconds of one `use`."""
    start = time.perf_counter()
    for i in range(10_000):
        model.use(names[i % len(names)])
    return (time.perf_counter() - start) / 10_000 * 1e6


def synchronise(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def shown(found: dict) -> Table:
    """Images a second, the ratio to the merged networks in the same round, and the weights held."""
    table = Table(
        'side',
        'images / s, median',
        'against merged, median (quartiles)',
        'weights, MB',
        title=f'{found["batch"]} images of {found["tuners"]} LoRAs on {found["model"]}, '
        f'{found["rounds"]} rounds; a switch: {found["switch_microseconds"]:.2f} µs; logits differ by '
        f'{found["max_difference"]:.1e} at most',
    )
    merged = found['sides']['grouped, a merged network each']['seconds']
    for side, measured in found['sides'].items():
        ratios = [one / other for one, other in zip(merged, measured['seconds'])]
        low, middle, high = statistics.quantiles(ratios, n=4)
        table.add_row(
            side,
            f'{found["batch"] / statistics.median(measured["seconds"]):.1f}',
            f'{middle:.2f} ({low:.2f} to {high:.2f})',
            f'{measured["weights_mb"]:.0f}',
        )
    return table


if __name__ == '__main__':
    main()
