"""Measures how long `import vet`, `import torch` and quick answers of `vet` take, each in a fresh process.

    python benchmarks/speed/imports.py

They take turns, after one round that does not count. Two more processes say their own times: the quickstart
until its first step, and `pipeline` for one image. Writes the entry of this host, see hosts.py.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hosts
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from vet import build_trainer
from vet.benchmark import record
from vet.environment import describe

LINES = ('vet --help', 'vet train --help', 'vet train nosuch.py', 'vet list tuners')
COMMANDS = {
    'nothing': '',
    'import torch': 'import torch',
    'import vet': 'import vet',
    'import torch, torchvision': 'import torch, torchvision',
    'import vet, torch': 'import vet, torch',
    'from vet import pipeline': 'from vet import pipeline',
    **{
        line: f'import sys; sys.argv = {line.split()}; from vet.cli.vet import main; main()' for line in LINES
    },
}
QUICKSTART = str(record.ROOT / 'configs/quickstart.py')
FIRST_STEP = """
import os, sys, time
import vet.engine.trainer
from vet import HOOKS, build_trainer
from vet.hooks.base import Hook

@HOOKS.register_module()
class Stop(Hook):
    def after_train_iter(self, runner):
        print(time.perf_counter() - began, flush=True)
        os._exit(0)

began = time.perf_counter()
options = dict(custom_hooks=[dict(type='Stop')])
build_trainer(sys.argv[1], work_dir=sys.argv[2], device='cpu', cfg_options=options).train()
"""
ONE_IMAGE = """
import sys, time
began = time.perf_counter()
from vet import pipeline
pipeline(sys.argv[1], device='cpu')(sys.argv[2])
print(time.perf_counter() - began)
"""


def seconds(code: str) -> float:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    if done.returncode not in (0, 2):  # 2: the answer to a user's mistake
        sys.exit(done.stderr)
    return time.perf_counter() - began


def said(code: str, *args: object) -> float:
    """The seconds that a fresh process prints last."""
    command = [sys.executable, '-c', code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def shown(found: dict) -> Table:
    table = Table('a fresh process', 'seconds, median (quartiles)', title=f'{found["rounds"]} rounds')
    for name, times in found['seconds'].items():
        low, middle, high = statistics.quantiles(times, n=4)
        table.add_row(name, f'{middle:.2f} ({low:.2f} to {high:.2f})')
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--rounds', type=int, default=9)
    record.add_output(parser, hosts.default())
    args = parser.parse_args()
    path = record.output(args)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = folder / 'image.png'
        Image.new('RGB', (64, 64)).save(image)
        options = {'train.max_epochs': 1}
        trainer = build_trainer(QUICKSTART, work_dir=folder / 'run', device='cpu', cfg_options=options)
        trainer.train()
        for number in range(args.rounds + 1):
            for command, code in COMMANDS.items():
                times.setdefault(command, []).append(seconds(code))
            first = said(FIRST_STEP, QUICKSTART, folder / str(number))
            times.setdefault('quickstart: from the imports to the first step', []).append(first)
            one = said(ONE_IMAGE, folder / 'run', image)
            times.setdefault('pipeline for one image, with all imports', []).append(one)
    found = dict(
        rounds=args.rounds,
        seconds={name: of_command[1:] for name, of_command in times.items()},  # the first warms up
        load=os.getloadavg(),
        environment=describe(torch.device('cpu')),
    )
    hosts.keep(path, 'imports', found)
    Console().print(shown(found))


if __name__ == '__main__':
    main()
