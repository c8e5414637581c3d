"""Compares LoRA's training step with PEFT's at several batches, threads and versions of torch.

    python benchmarks/speed/grid.py
    python benchmarks/speed/grid.py --jobs vit-fp32 --batches 1 8 --threads 1 --compile

Each point is one job of steps.py with the sides `peft` and `vet`, eager or compiled, in the same rounds.
Another version of torch is measured by the same command in its own environment. Writes the entry of this
host, see hosts.py.
"""

import argparse
import statistics

import hosts
import torch
from rich.console import Console
from rich.table import Table
from steps import JOBS, Sides, in_rounds, of_batch

from vet.benchmark import record
from vet.engine.fast.door import freed_memory_kept
from vet.environment import describe


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--jobs', nargs='+', choices=JOBS, default=[name for name in JOBS if not name.startswith('vitb')]
    )
    parser.add_argument('--batches', nargs='+', type=int, default=[1, 8, 64])
    parser.add_argument('--threads', nargs='+', type=int, default=[1, 2])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--compile', action='store_true', help='compiled sides in place of eager ones')
    record.add_output(parser, hosts.default())
    args = parser.parse_args()
    path = record.output(args)
    device = torch.device('cpu')
    for job in args.jobs:
        for batch in args.batches:
            for threads in args.threads:
                torch.set_num_threads(threads)
                sides = Sides(of_batch(JOBS[job], batch), device)
                with freed_memory_kept(device):
                    steps = dict(peft=sides.peft(args.compile), vet=sides.vet(args.compile))
                    seconds = in_rounds(steps, args.rounds, device)
                one = dict(
                    job=job,
                    batch=batch,
                    threads=threads,
                    compiled=args.compile,
                    torch=torch.__version__.partition('+')[0],
                    seconds=seconds,
                    environment=describe(device),
                )
                name = ', '.join(str(one[key]) for key in ('job', 'batch', 'threads', 'compiled', 'torch'))
                hosts.keep(path, 'grid', hosts.read(path, 'grid') | {name: one})
                print(f'{name}: {ratio(one):.3f}', flush=True)
    Console(width=150).print(shown(hosts.read(path, 'grid')))


def ratio(one: dict) -> float:
    """The time of vet's step over that of PEFT's, the median over rounds."""
    return statistics.median(a / b for a, b in zip(one['seconds']['vet'], one['seconds']['peft']))


def shown(found: dict) -> Table:
    """x PEFT, a column for each job."""
    jobs = list(dict.fromkeys(one['job'] for one in found.values()))
    table = Table('torch', 'step', 'batch', 'threads', *jobs, title="vet's step, x PEFT, median")
    rows: dict[tuple, dict[str, str]] = {}
    for one in found.values():
        how = 'compiled' if one['compiled'] else 'eager'
        key = (one['torch'], how, one['batch'], one['threads'])
        rows.setdefault(key, {})[one['job']] = f'{ratio(one):.2f}'
    for key in sorted(rows):
        table.add_row(*map(str, key), *(rows[key].get(job, '-') for job in jobs))
    return table


if __name__ == '__main__':
    main()
