"""Writes a trained model for another library: timm, torchvision, ONNX, torch.export, PEFT; or its backbone.

The written file is read back and compared with the model.
"""

import argparse

from vet.cli.command import Parser, add_import, import_plugins, run
from vet.cli.signals import imports
from vet.hub.names import find_model

# the names of vet.hub.exports.FORMATS, which imports torch
FORMATS = ('backbone', 'timm', 'torchvision', 'onnx', 'torch-export', 'peft')


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        'model', help='a model folder, the work folder of a finished run, or an id OWNER/NAME of a hub'
    )
    parser.add_argument(
        'output', help='the file to write (.safetensors, .onnx, .pt2), or the folder of an adapter'
    )
    parser.add_argument(
        '--to',
        choices=FORMATS,
        default='backbone',
        help='backbone: merged weights without the head, for model.backbone.checkpoint (the default); timm, '
        'torchvision: with the head; onnx, torch-export: the whole computation; peft: an adapter',
    )
    parser.add_argument(
        '--with-preprocessing',
        action='store_true',
        help='for onnx and torch-export: uint8 images (batch, height, width, 3) of any size in, scores out',
    )
    parser.add_argument('--task', help='the task to export, for a model of several tasks')
    parser.add_argument('--backbone', metavar='PATH', help="the backbone's weights, if they have moved")
    add_import(parser)
    args = parser.parse_args()
    run(lambda: _export(args))


def _export(args: argparse.Namespace) -> None:
    import_plugins(args.imports)
    folder = find_model(args.model)
    with imports():
        from vet.hub.export import export
    print(export(folder, args.output, args.to, args.task, args.backbone, args.with_preprocessing))
