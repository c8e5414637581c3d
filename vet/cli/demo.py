"""Writes a folder with a Gradio app around a trained model, for a Space of the Hugging Face hub."""

import argparse

from vet.cli.command import Parser, add_backbone, add_import, import_plugins, run
from vet.cli.signals import imports
from vet.hub.names import find_model


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        'model', help='a model folder, the work folder of a finished run, or an id OWNER/NAME of a hub'
    )
    parser.add_argument('--out', required=True, metavar='DIR', help='the new folder of the app')
    parser.add_argument('--title', help="of the page (default: the network's name)")
    parser.add_argument('--task', help='the task of the page, for a model of several tasks')
    add_backbone(parser)
    add_import(parser)
    args = parser.parse_args()
    run(lambda: _demo(args))


def _demo(args: argparse.Namespace) -> None:
    import_plugins(args.imports)
    folder = find_model(args.model)
    with imports():
        from vet.hub.demo import write_demo
    out = write_demo(folder, args.out, args.task, args.backbone, args.title)
    print(f'{out}: python {out}/app.py starts the page; {out}/README.md says how it goes to the hub')
