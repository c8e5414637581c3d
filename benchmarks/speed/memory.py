"""Measures what tuners keep for the backward pass, compared with LoRA.

    python benchmarks/speed/memory.py

Side networks and last blocks need no gradient in most of the backbone. The job is one training step on
ViT-S/16 (random weights, 8 images), counted as in steps.py. Writes the entry of this host, see hosts.py.
"""

import argparse

import hosts
import torch
from rich.console import Console
from rich.table import Table
from steps import JOBS, Sides, saved_bytes

from vet.benchmark import record
from vet.environment import describe

TUNERS = {
    'LoRA': dict(type='LoRA', rank=10),
    'Partial, last 2 blocks': dict(type='Partial', blocks=2),
    'LoRA, last 2 blocks': dict(type='LoRA', rank=10, at=['blocks.10.attn.qkv', 'blocks.11.attn.qkv']),
    'SideTuning': dict(type='SideTuning'),
    'LadderSide': dict(type='LadderSide'),
    'ResTuningBypass': dict(type='ResTuningBypass'),
    'PixelBranch': dict(type='PixelBranch'),
    'LinearProbe': dict(type='LinearProbe'),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    record.add_output(parser, hosts.default())
    path = record.output(parser.parse_args())
    device = torch.device('cpu')
    saved = {}
    for name in ('vit-fp32', 'vit-bf16'):
        sides = Sides(JOBS[name], device)
        saved[name] = {tuner: saved_bytes(sides.vet(tuners=[entry])) for tuner, entry in TUNERS.items()}
    found = dict(saved_bytes=saved, environment=describe(device))
    hosts.keep(path, 'memory', found)
    Console(width=120).print(shown(found))


def shown(found: dict) -> Table:
    saved = found['saved_bytes']
    job = JOBS['vit-fp32']
    table = Table(
        'tuner',
        *(f'{name}, MB (x LoRA)' for name in saved),
        title=f'{job.model}, batch {job.batch}: kept for the backward pass',
    )
    for tuner in saved['vit-fp32']:
        table.add_row(
            tuner, *(f'{own[tuner] / 1e6:.1f} ({own[tuner] / own["LoRA"]:.2f})' for own in saved.values())
        )
    return table


if __name__ == '__main__':
    main()
