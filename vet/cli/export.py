"""Writes a trained model, or its backbone alone, for timm, torchvision, ONNX, torch.export or PEFT.

Then vet reads the written file back, and compares it with the model.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vet.cli.command import Parser, add_backbone, add_import, import_plugins, run
from vet.cli.predict import list_images
from vet.cli.signals import imports
from vet.cli.test import prepared
from vet.errors import UserError
from vet.hub.names import find_model

if TYPE_CHECKING:  # torch is imported only for a command that is right
    from vet.agreement import Agreement

# the names of vet.hub.formats.FORMATS, which imports torch
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
    parser.add_argument(
        '--int8',
        action='store_true',
        help='for onnx: weights of linear layers in 8 bits; says the accuracy before and after, on the test '
        'split of the run, or how many answers on --images stay the same',
    )
    parser.add_argument(
        '--images', nargs='+', default=[], metavar='PATH', help='with --int8: images, or folders of images'
    )
    parser.add_argument(
        '--data-root', metavar='DIR', help='where the datasets are (default: $VET_DATA_ROOT, else ./data)'
    )
    parser.add_argument('--task', help='the task to export, for a model of several tasks')
    add_backbone(parser)
    add_import(parser)
    args = parser.parse_args()
    run(lambda: _export(args))


def _export(args: argparse.Namespace) -> None:
    import_plugins(args.imports)
    if args.images and not args.int8:
        raise UserError('--images is given without --int8; it says on which images --int8 is judged.')
    images = [image for path in args.images for image in list_images(path)]
    folder = find_model(args.model)
    with imports():
        from vet.hub.export import export
    to = [folder, args.output, args.to, args.task, args.backbone, args.with_preprocessing, args.int8]
    done = export(*to)
    print(done)
    if args.int8:
        print(f'int8: {_agreement(args, done.path, images)}')


def _agreement(args: argparse.Namespace, path: Path, images: list[str]) -> 'Agreement':
    """A sentence that compares the answers of the graph at `path` with those of its model."""
    with imports():
        from vet.agreement import on_dataset, on_images
        from vet.hub.formats.int8 import GraphClassifier
        from vet.pipelines import pipeline
    if images:
        classify = pipeline(model=str(find_model(args.model)), device='cpu', backbone=args.backbone)
        graph = GraphClassifier(path, classify.model.for_task(args.task).objective)
        return on_images(classify, graph, images, args.task)
    asked = vars(args) | dict(split='test', device='cpu', cfg_options={}, imports=[])
    try:
        model, dataset, views, accelerator, settings = prepared(argparse.Namespace(**asked))
    except UserError as error:
        raise UserError(
            f'{path} is written, but its accuracy cannot be measured: {error} Give --images PATH, or '
            '--data-root DIR.'
        ) from error
    graph = GraphClassifier(path, model.for_task(args.task).objective)
    task_data = getattr(dataset, 'tasks', {args.task: dataset})[args.task]
    return on_dataset(
        model.for_task(args.task), graph, task_data, views[args.task], accelerator, settings.evaluation
    )
