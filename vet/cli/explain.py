"""Shows where a network looks: heat over each image, by Grad-CAM or attention rollout."""

import argparse
from pathlib import Path

from vet.cli.command import Parser, add_backbone, add_import, free_name, import_plugins, run
from vet.cli.predict import list_images
from vet.cli.signals import imports
from vet.errors import UnknownNameError, UserError
from vet.files import refuse_folder_of_inputs, write_file, writing
from vet.hub.names import find_model

METHODS = ('grad-cam', 'rollout')  # the names of vet.explain.heat.METHODS, which imports torch


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('model', help='a model folder, a work folder, or an id OWNER/NAME of a hub')
    parser.add_argument('images', nargs='+', help='image files, URLs, or folders of images')
    parser.add_argument('--out', required=True, metavar='DIR', help='the folder for the pictures, PNG files')
    parser.add_argument('--method', choices=METHODS, default='grad-cam')
    parser.add_argument('--target', metavar='LABEL', help='the class to explain (default: the answer)')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, … (default: the best device of the machine)')
    add_backbone(parser)
    parser.add_argument('--task', help='the task, for a model of several tasks')
    add_import(parser)
    args = parser.parse_args()
    run(lambda: _explain(args))


def _explain(args: argparse.Namespace) -> None:
    import_plugins(args.imports)
    images = [image for path in args.images for image in list_images(path)]
    folder = str(find_model(args.model))
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise UserError(f'--out is {args.out!r}, which is a file. Give a folder.')
    with imports():
        import io

        from vet.explain.heat import METHODS
        from vet.explain.overlay import drawn_over
        from vet.pipelines import pipeline
    classify = pipeline(model=folder, device=args.device, backbone=args.backbone)
    model = classify.model.for_task(args.task)
    names = model.objective.names
    if args.target is not None and (args.target not in names or len(names) != model.objective.num_outputs):
        raise UnknownNameError('class for --target', args.target, names)
    outputs = None if args.target is None else [names.index(args.target)]
    refuse_folder_of_inputs('--out', out, images)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for number, image in enumerate(images):
        view = classify.seen(image, args.task, number)
        [heat] = METHODS[args.method](model, view[None].to(next(model.parameters()).device), outputs)
        path = out / f'{free_name(Path(image.rstrip("/")).stem or "image", taken)}.png'
        data = io.BytesIO()
        drawn_over(view, heat, classify.view(args.task)).save(data, 'PNG')
        write_file(path, data.getvalue())
        print(path)
