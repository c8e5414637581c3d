"""Labels images, or all images of a folder. Prints JSON or a table."""

import argparse
import json
from pathlib import Path

from rich.table import Column, Table

from vet.cli.command import Parser, add_import, import_plugins, run
from vet.cli.signals import imports
from vet.datasets.image import open_image
from vet.datasets.image_files import find_images, printable, warn_of_left_out
from vet.errors import DataError
from vet.escapes import escaped
from vet.hub.names import find_model
from vet.terminal import Terminal


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        'model', help='a model folder, the work folder of a finished run, or an id OWNER/NAME of a hub'
    )
    parser.add_argument('images', nargs='+', help='image files, URLs, or folders of images')
    parser.add_argument('--topk', type=int, help='the largest number of labels of an image (default: 5)')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--format', choices=('table', 'json'), default='table')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, … (default: the best device of the machine)')
    parser.add_argument('--backbone', metavar='PATH', help="the backbone's weights, if they have moved")
    parser.add_argument('--task', help='the task, for a model of several tasks')
    add_import(parser)
    args = parser.parse_args()
    run(lambda: _predict(args))


def _predict(args: argparse.Namespace) -> None:
    import_plugins(args.imports)
    images = [image for given in args.images for image in list_images(given)]
    folder = str(find_model(args.model))
    with imports():
        from vet.pipelines import pipeline
    classify = pipeline(model=folder, device=args.device, backbone=args.backbone)
    results = classify(images, args.topk, args.batch_size, args.task)
    if args.format == 'json':
        rows = [dict(image=printable(image), **result) for image, result in zip(images, results)]
        print(escaped(json.dumps(rows, indent=1, ensure_ascii=False)))  # JSON reads the escapes back
        return
    table = Table(*(Column(name, overflow='fold') for name in ('image', 'label', 'score')))
    for image, result in zip(images, results):
        for i, (label, score) in enumerate(classify.rows(result, args.task) or [('', '')]):
            table.add_row('' if i else printable(image), label, score)
    Terminal(markup=False, emoji=False).print(table)  # names may hold brackets and colons


def list_images(given: str) -> list[str]:
    """A folder's images, at any depth, sorted.

    Any other path stays unchanged. DataError for a path that does not exist, and for a folder without images.
    """
    if not Path(given).is_dir():
        if '://' not in given and not Path(given).exists():
            open_image(given)  # raises the error
        return [given]
    found = find_images(given)
    if not found.images:
        left_out = f' Left out: {found.says()}.' if found.left_out else ''
        raise DataError(
            f'the folder {given!r} holds no image that Pillow reads.{left_out} Give another folder.'
        )
    warn_of_left_out(found, given)
    return sorted(found.images)
