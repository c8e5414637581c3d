"""Writes the merged backbone of a model as a plain file of weights, for model.backbone.checkpoint or timm."""

import argparse

from vet.cli.command import add_import, import_plugins, run
from vet.hub.export import export_backbone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model', help='a model folder, or the work folder of a finished run')
    parser.add_argument('file', help='the .safetensors file to write')
    parser.add_argument('--task', help='of a model of several tasks: whose backbone')
    add_import(parser)
    args = parser.parse_args()
    run(lambda: _export(args))


def _export(args: argparse.Namespace) -> None:
    import_plugins(args.imports)
    export_backbone(args.model, args.file, args.task)
