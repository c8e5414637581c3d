"""Runs a suite, and writes its tables and its report. benchmarks/suites/quickstart.py is a small suite.

If a run fails, the others are still made, and the exit code is 1.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from vet.cli.command import Options, Parser, add_common, add_options, command_again, run, way_on
from vet.cli.signals import imports
from vet.errors import UserError
from vet.log import say, warn
from vet.terminal import Terminal

if TYPE_CHECKING:
    from vet.benchmark.campaign import Campaign, Launch
    from vet.benchmark.cells import Result
    from vet.benchmark.local import Local
    from vet.benchmark.suite import Suite


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        'suite', nargs='?', help='a suite file, or the name of a shipped suite (`vet list suites`)'
    )
    parser.add_argument(
        '--results', type=Path, default=Path('benchmarks/results'), metavar='DIR', help='default: %(default)s'
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/benchmark'),
        metavar='DIR',
        help='default: %(default)s',
    )
    parser.add_argument(
        '--only',
        default='*',
        metavar='PATTERN',
        help="runs whose dataset.backbone.tuner fits, such as 'cub200.*'",
    )
    parser.add_argument(
        '--jobs', type=int, default=1, help='runs at once, on each GPU (default: %(default)s)'
    )
    parser.add_argument('--gpus', metavar='N,N', help='the numbers of the GPUs (default: all GPUs)')
    parser.add_argument(
        '--launcher',
        choices=list(LAUNCHERS),
        default='local',
        help='where the runs are made: on this machine, on a Ray cluster, or in a Slurm array that you start',
    )
    parser.add_argument(
        '--resources',
        nargs='+',
        action=Options,
        metavar='KEY=VALUE',
        help="of each run: Ray's, such as num_gpus=0.5 num_cpus=4, or sbatch's, such as gpus=1 time=4:00:00",
    )
    parser.add_argument('--dry-run', action='store_true', help='list the runs, and how long they may take')
    parser.add_argument(
        '--report', action='store_true', help='make no run; write tables and report again from the results'
    )
    parser.add_argument(
        '--run',
        metavar='NAME',
        help='the run whose classes the report shows, such as digits.digits_vit.lora.seed0 '
        '(default: the best)',
    )
    parser.add_argument(
        '--compare',
        nargs=2,
        metavar=('A', 'B'),
        help='say whether two sets of results (folders, or patterns of files) differ by more than seed noise',
    )
    add_common(parser)
    add_options(parser)
    args = parser.parse_args()
    run(lambda: _compare(*args.compare) if args.compare else _benchmark(args))


def _benchmark(args: argparse.Namespace) -> None:
    if args.suite is None:
        raise UserError(
            'no suite is given; give a suite file or the name of a suite, such as quickstart, or '
            '--compare A B.'
        )
    from vet.benchmark.suite import load_suite

    suite = load_suite(args.suite, args.cfg_options)
    _gpus(args.gpus)
    with imports():
        from vet.benchmark.campaign import Campaign
        from vet.benchmark.cells import run_name
        from vet.benchmark.results import read_results
        from vet.builders import resolve_data_root
    if args.report:
        _write(args.results / suite.name, suite, args.run)
        return
    campaign = Campaign(
        suite.cells(args.only),
        args.results,
        args.work_dir,
        str(resolve_data_root(args.data_root)),
        LAUNCHERS[args.launcher](args),
        args.device,
    )
    campaign.check()
    if args.dry_run:
        _list(campaign, share_a_start=args.launcher == 'local')
        return
    with way_on(lambda: f'Results that are written stay. To go on: {command_again()}'):
        campaign.run()
    if read_results(args.results / suite.name):  # an array that is only written has no results yet
        _write(args.results / suite.name, suite, args.run)
    if failed := _failed(campaign):
        warn(f'failed: {len(failed)}')
        for result in failed:
            warn(f'{run_name(result)}: {result["error"]}')
        sys.exit(1)


def _gpus(given: str | None) -> list[int] | None:
    """The numbers of --gpus. None: all GPUs."""
    if given is None:
        return None
    parts = [text.strip() for text in given.split(',') if text.strip()]
    if not parts:
        raise UserError(
            f'--gpus {given!r} names no GPU; give numbers, such as 0,1, or for the CPU --device cpu.'
        )
    if wrong := [text for text in parts if not text.isdecimal()]:
        raise UserError(f'--gpus {given!r} has {wrong[0]!r}; give the numbers of GPUs, such as 0,1.')
    return list(map(int, parts))


def _local(args: argparse.Namespace) -> 'Local':
    import torch

    from vet.benchmark.local import Local

    given = _gpus(args.gpus)
    gpus = range(torch.cuda.device_count()) if given is None else given
    return Local(args.jobs, gpus if args.device in (None, 'cuda') else [])


def _ray(args: argparse.Namespace) -> 'Launch':
    from vet.benchmark.ray import Ray

    return Ray(args.resources)


def _slurm(args: argparse.Namespace) -> 'Launch':
    from vet.benchmark.slurm import Slurm

    return Slurm(args.work_dir, args.resources)


LAUNCHERS: dict[str, Callable[[argparse.Namespace], 'Launch']] = dict(local=_local, ray=_ray, slurm=_slurm)


def _write(folder: Path, suite: 'Suite', run: str | None) -> None:
    """Writes tables and report from the results in the folder.

    Prints the tables of accuracy, and the paths.
    """
    from vet.benchmark.ranks import rank_notes, rank_rows
    from vet.benchmark.report import write_report
    from vet.benchmark.results import read_results
    from vet.benchmark.table_files import write_tables

    results = read_results(folder)
    if not results:
        raise UserError(
            f'{str(folder)!r} has no whole result; run the suite without --report first, or give its '
            '--results.'
        )
    for table in write_tables(folder, results, suite):
        _print(table.accuracy(), f'{table.title}, percent')
        if ranks := rank_rows(table):
            _print(ranks, f'{table.title}, ranks')
            Terminal(highlight=False).print('\n'.join(map(escape, rank_notes(table))), soft_wrap=True)
    for path in (folder / 'table.md', folder / 'table.csv', write_report(folder, results, suite, run)):
        say(f'written to {path}')


def _print(rows: list[list[str]], title: str) -> None:
    header, *lines = rows
    shown = Table(*header, title=title, title_justify='left')
    for line in lines:
        shown.add_row(*map(escape, line))
    Terminal().print(shown)


def _failed(campaign: 'Campaign') -> list['Result']:
    from vet.benchmark.results import read_result, result_path

    missing = [
        (read_result(result_path(campaign.results, planned)), campaign.job(planned))
        for planned, done in campaign.plan()
        if not done
    ]
    return [
        result
        for result, job in missing
        if result and result['status'] == 'failed' and result['identity'] == job.identity
    ]


def _compare(a: str, b: str) -> None:
    with imports():
        from vet.benchmark.compare import as_rich, compare, read_side
    comparisons = compare(read_side(a), read_side(b))
    if not comparisons:
        raise UserError(f'{a!r} and {b!r} have no cell (dataset, backbone and tuner) in common.')
    Terminal().print(as_rich(comparisons))


def _list(campaign: 'Campaign', share_a_start: bool) -> None:
    from vet.benchmark.timing import STEPS, start_seconds

    plan = campaign.plan()
    table = Table('run', 'state', 'may take')
    total = 0.0
    timed = 0
    unknown = 0
    for planned, done in plan:
        seconds = None if done else campaign.seconds(planned)
        by_steps = False
        if seconds is None and not done:
            seconds = campaign.timed_seconds(planned)
            by_steps = seconds is not None
        if seconds is None:
            takes = '' if done else 'not known'
        else:
            takes = f'{seconds:.0f} s{" of training" * by_steps}'
        table.add_row(planned.name, 'done' if done else 'to do', takes)
        total += seconds or 0
        timed += by_steps
        unknown += seconds is None and not done
    terminal = Terminal(highlight=False)
    terminal.print(table)
    counted = Counter(done for _, done in plan)
    processes = min(counted[False], 1) if share_a_start else counted[False]
    starts = processes * start_seconds() if processes else 0.0
    terminal.print(
        f'{counted[True]} done, {counted[False]} to do: {total + starts:.0f} s, one after another'
        + (f', with {starts:.0f} s for {processes} starts of Python' if starts else '')
        + (
            f'; {timed} of them are estimates for training alone, by {STEPS} steps timed here'
            if timed
            else ''
        )
        + (f'; {unknown} cannot be estimated' if unknown else ''),
        soft_wrap=True,
    )
