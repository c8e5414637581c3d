"""Runs a suite, and writes its tables: benchmarks/suites/quickstart.py takes about three minutes on two CPU cores."""

import argparse
from collections import Counter
from pathlib import Path

import torch
from rich.table import Table

from vet.benchmark.campaign import Campaign
from vet.benchmark.local import Local
from vet.benchmark.suite import load_suite
from vet.builders import resolve_data_root
from vet.cli.command import add_common, add_options, run
from vet.engine.progress import console


def main() -> None:
    parser = argparse.ArgumentParser(prog='benchmark', description=__doc__)
    parser.add_argument('suite', help='a suite file, such as benchmarks/suites/quickstart.py')
    parser.add_argument('--results', type=Path, default=Path('benchmarks/results'), metavar='DIR', help='default: %(default)s')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/benchmark'), metavar='DIR', help='default: %(default)s')
    parser.add_argument('--only', default='*', metavar='PATTERN', help="runs whose dataset.backbone.tuner fits, such as 'cub200.*'")
    parser.add_argument('--jobs', type=int, default=1, help='runs at once, on each GPU (default: %(default)s)')
    parser.add_argument('--gpus', metavar='N,N', help='which GPUs (default: all there are)')
    parser.add_argument('--dry-run', action='store_true', help='list the runs, and what they may take')
    add_common(parser)
    add_options(parser)
    args = parser.parse_args()
    run(lambda: _benchmark(args))


def _benchmark(args: argparse.Namespace) -> None:
    suite = load_suite(args.suite, args.cfg_options)
    gpus = range(torch.cuda.device_count()) if args.gpus is None else [int(gpu) for gpu in args.gpus.split(',') if gpu]
    campaign = Campaign(suite.cells(args.only), args.results, args.work_dir, str(resolve_data_root(args.data_root)),
                        Local(args.jobs, [] if args.device == 'cpu' else gpus), args.device)
    campaign.check()
    if args.dry_run:
        _list(campaign)
        return
    campaign.run()


def _list(campaign: Campaign) -> None:
    planned, table = campaign.plan(), Table('run', 'state', 'may take')
    total, unknown = 0.0, 0
    for one, done in planned:
        seconds = campaign.seconds(one)
        table.add_row(one.name, 'done' if done else 'to do', '' if done else 'not known' if seconds is None else f'{seconds:.0f} s')
        total, unknown = total + (0 if done else seconds or 0), unknown + (seconds is None and not done)
    console.print(table)
    counted = Counter(done for _, done in planned)
    console.print(f'{counted[True]} done, {counted[False]} to do: {total:.0f} s, one after another'
                  + (f', and {unknown} like which none was measured' if unknown else ''), soft_wrap=True)
