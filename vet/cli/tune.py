"""Searches a tuner, its arguments and its learning rate for a folder of photos, or for a config."""

import argparse
from pathlib import Path

from vet.cli.command import Parser, add_common, add_options, command_again, run, tell_next, way_on
from vet.cli.signals import imports
from vet.errors import UserError


def main() -> None:
    parser = Parser(description=__doc__, parents=[_place()])
    parser.add_argument(
        'data', help='photos, as for `vet fit`; or a config file or the name of a shipped config'
    )
    parser.add_argument(
        '--minutes',
        type=float,
        default=10.0,
        help='about how long to search and to train the winner (default: %(default)g)',
    )
    parser.add_argument(
        '--tuners',
        nargs='+',
        metavar='NAME',
        help='the tuners to try (default: the tuners whose classes list candidates)',
    )
    parser.add_argument('--backbone', metavar='NAME', help='for photos, as for `vet fit`')
    parser.add_argument('--checkpoint', metavar='FILE', help='the weights of --backbone NAME')
    parser.add_argument('--holdout', type=float, default=0.2, help='for photos, as for `vet fit`')
    parser.add_argument('--group-by', metavar='REGEX', help='for photos, as for `vet fit`')
    parser.add_argument(
        '--launcher',
        choices=('local', 'ray'),
        default='local',
        help='local: one trial after another; ray: on a Ray cluster, one trial for each GPU, or for each CPU '
        'if there is no GPU',
    )
    parser.add_argument('--seed', type=int, default=0)
    add_common(parser)
    add_options(parser)
    args = parser.parse_args()
    run(lambda: _tune(args))


def _place() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='the folder of the search (default: runs/tune-DATA/TIME); a search that was stopped goes on',
    )
    return parser


def _tune(args: argparse.Namespace) -> None:
    with imports():
        try:
            import optuna  # noqa: F401
        except ModuleNotFoundError as error:
            raise UserError(
                'vet tune needs Optuna. Install it: pip install "vision-efficient-tuning[tune]".'
            ) from error
        from vet.fit.run_folder import new_run
        from vet.search.page import HEADER, LISTED, rows
        from vet.search.tuning import Options, tune
    chosen = {
        key: value for key, value in vars(args).items() if key not in ('data', 'out', 'quiet', 'tuners')
    }
    tuners = tuple(args.tuners) if args.tuners else None
    folder = new_run(Path(args.data), args.out, 'tune-')
    with way_on(lambda: f'To go on: {command_again(_place(), ["--out", str(folder)])}'):
        result = tune(args.data, folder, Options(tuners=tuners, **chosen))
    lines = [HEADER, *rows(result.tried[:LISTED])]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print('  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    print(result.says())
    tell_next(folder, folder / 'tuned')
