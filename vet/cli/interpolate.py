"""Evaluates models between the untuned and the tuned model: the curve of WiSE-FT over alpha."""

import argparse
import json

from vet.cli.command import Parser, add_backbone, add_common, add_import, add_options, run
from vet.cli.signals import imports
from vet.cli.test import prepared
from vet.errors import UserError
from vet.hub.names import find_model

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('model', help='a work folder, a model folder, or an id OWNER/NAME of a hub')
    parser.add_argument(
        '--alphas',
        nargs='+',
        type=float,
        default=ALPHAS,
        help='0 is the untuned model, 1 is the tuned model (default: 0 0.25 0.5 0.75 1)',
    )
    parser.add_argument('--split', default='val', choices=('train', 'val', 'test'))
    parser.add_argument('--out', metavar='DIR', help='also write the model folder of one alpha')
    add_backbone(parser)
    add_import(parser)
    add_common(parser)
    add_options(parser)
    args = parser.parse_args()
    run(lambda: print(json.dumps(curve(args), indent=1)))


def curve(args: argparse.Namespace) -> list[dict[str, float]]:
    """The metrics of a split for each alpha: [{'alpha': 0..1, 'accuracy': 0..1, …}, …]."""
    with imports():
        from vet.engine.evaluate import measure
        from vet.hub.interpolation import interpolated, refuse_alphas, save_between
    refuse_alphas(*args.alphas)
    if args.out and len(args.alphas) > 1:
        raise UserError(f'--out is {args.out!r}, the folder of one model. Give one number to --alphas.')
    model, dataset, views, accelerator, settings = prepared(args)
    found = []
    for alpha in args.alphas:
        with interpolated(model.for_task(None), alpha):
            metrics = measure(model, dataset, views, accelerator, settings.evaluation)
            found.append(dict(alpha=alpha, **metrics))
    if args.out:
        save_between(find_model(args.model), args.out, args.alphas[0], args.backbone)
    return found
