"""Combines trained models of one backbone into a new model folder.

The method soup takes the mean of the tensors. The method sum adds the updates.
"""

import argparse

from vet.cli.command import Parser, add_backbone, add_import, import_plugins, run
from vet.cli.signals import imports
from vet.hub.names import find_model

METHODS = ('soup', 'sum')  # the names of vet.hub.combine.METHODS, which imports torch


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('output', help='the model folder to write')
    parser.add_argument(
        'models', nargs='+', help='model folders, work folders of finished runs, or ids OWNER/NAME of a hub'
    )
    parser.add_argument('--method', choices=METHODS, default='soup')
    parser.add_argument(
        '--weights', nargs='+', type=float, help='one per model; with sum, a negative weight subtracts'
    )
    parser.add_argument(
        '--head',
        type=int,
        metavar='N',
        help='the model, counted from 0, whose head and classes the result has (default: the mean)',
    )
    add_backbone(parser)
    add_import(parser)
    args = parser.parse_args()
    run(lambda: _combine(args))


def _combine(args: argparse.Namespace) -> None:
    import_plugins(args.imports)
    folders = [find_model(model) for model in args.models]
    with imports():
        from vet.hub.combine import combine
    combine(folders, args.output, args.weights, args.method, args.head, args.backbone)
