"""Trains a model on a folder of photos, without a config."""

import argparse
import shlex
from pathlib import Path

from vet.cli.command import Parser, run, tell_next, way_on
from vet.cli.signals import imports


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        'photos',
        help='a folder with one folder of photos for each class; or with the folders train, val and test; '
        'or a CSV with the columns path,label; or a zip or tar file of such a folder',
    )
    parser.add_argument('--out', metavar='DIR', help='a new folder for the run (default: runs/PHOTOS/TIME)')
    parser.add_argument(
        '--backbone',
        metavar='NAME',
        help="small, base, large, timm's name of a network, a file of weights whose name begins with timm's "
        'name, or trial: the small ViT that ships with vet '
        '(default: base or small, if timm has downloaded the weights before, else small)',
    )
    parser.add_argument('--checkpoint', metavar='FILE', help='the weights of --backbone NAME')
    parser.add_argument(
        '--minutes', type=float, default=10.0, help='about how long to train (default: %(default)g)'
    )
    parser.add_argument('--tuner', default='auto', help='auto, or a name of `vet list tuners`')
    parser.add_argument(
        '--holdout',
        type=float,
        default=0.2,
        help='the share of photos for the test, if there is no test folder (default: %(default)g)',
    )
    parser.add_argument(
        '--folds',
        type=int,
        metavar='N',
        help='test each photo once, in N trainings, and train a last model on all photos',
    )
    parser.add_argument(
        '--group-by',
        metavar='REGEX',
        help='photos whose paths give the same text stay together: the text of the first (…), else all that '
        "fits, such as 'animal-(.*)-photo'",
    )
    parser.add_argument('--strict', action='store_true', help='refuse broken files')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--device', help='cpu, cuda, cuda:1, … (default: the best device of the machine)')
    args = parser.parse_args()
    run(lambda: _fit(args))


def _fit(args: argparse.Namespace) -> None:
    with imports():
        from vet.fit.fitting import Options, fit
        from vet.fit.run_folder import new_run
    chosen = {key: value for key, value in vars(args).items() if key not in ('photos', 'out', 'quiet')}
    source = Path(args.photos)
    folder = new_run(source, args.out)
    with way_on(lambda: _way_on(folder)):
        result = fit(source, folder, Options(**chosen))
    print(result.says())
    tell_next(result.folder, result.model)


def _way_on(folder: Path) -> str:
    """How to continue a fit after a signal. Only the last training can continue."""
    if any((folder / 'tuned' / 'checkpoints').glob('step-*')):
        command = ['vet', 'train', str(folder / 'config.py'), '--work-dir', str(folder / 'tuned')]
        return f'To go on: {shlex.join([*command, "--resume", "auto"])}'
    return f'To go on, begin again with a new --out. The folder {str(folder)!r} is not whole.'
