"""Measures how long `import vet`, `vet list tuners` and `import torch` take, each in a fresh process.

    python benchmarks/speed/imports.py

The three take turns, after one round that does not count. Writes results/imports.json.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from vet.benchmark import record
from vet.environment import describe

RESULTS = Path(__file__).parent / 'results' / 'imports.json'
LIST = "import sys; sys.argv = ['vet', 'list', 'tuners']; from vet.cli.vet import main; main()"
COMMANDS = {
    'nothing': '',
    'import torch': 'import torch',
    'import vet': 'import vet',
    'import vet, torch': 'import vet, torch',
    'from vet import pipeline': 'from vet import pipeline',
    'vet list tuners': LIST,
}


def seconds(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, '-c', code], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


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
    record.add_output(parser, RESULTS)
    args = parser.parse_args()
    path = record.output(args)
    rounds = [{name: seconds(code) for name, code in COMMANDS.items()} for _ in range(args.rounds + 1)][1:]
    found = dict(
        rounds=args.rounds,
        seconds={name: [times[name] for times in rounds] for name in COMMANDS},
        environment=describe(torch.device('cpu')),
    )
    record.write(path, found)
    Console().print(shown(found))


if __name__ == '__main__':
    main()
