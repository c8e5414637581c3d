"""Measures how long `import vet`, `import torch` and quick answers of `vet` take, each in a fresh process.

    python benchmarks/speed/imports.py

They take turns, after one round that does not count. Writes the entry of this host, see hosts.py.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import hosts
import torch
from rich.console import Console
from rich.table import Table

from vet.benchmark import record
from vet.environment import describe

LINES = ('vet --help', 'vet train --help', 'vet train nosuch.py', 'vet list tuners')
COMMANDS = {
    'nothing': '',
    'import torch': 'import torch',
    'import vet': 'import vet',
    'import vet, torch': 'import vet, torch',
    'from vet import pipeline': 'from vet import pipeline',
    **{
        line: f'import sys; sys.argv = {line.split()}; from vet.cli.vet import main; main()' for line in LINES
    },
}


def seconds(code: str) -> float:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    if done.returncode not in (0, 2):  # 2: the answer to a user's mistake
        sys.exit(done.stderr)
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
    record.add_output(parser, hosts.default())
    args = parser.parse_args()
    path = record.output(args)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(args.rounds + 1):
        for name, code in COMMANDS.items():
            times[name].append(seconds(code))
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
