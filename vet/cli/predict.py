"""Labels images, or all images of a folder. Writes each answer as it comes."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from vet.cli.command import Parser, add_backbone, add_import, import_plugins, run
from vet.cli.signals import imports
from vet.datasets.image import open_image
from vet.datasets.image_files import find_images, printable, warn_of_left_out
from vet.errors import DataError, UserError
from vet.files import new_file, refuse_folder_of_inputs, refuse_input
from vet.hub.names import find_model
from vet.log import warn
from vet.progress import counted


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        'model', help='a model folder, the work folder of a finished run, or an id OWNER/NAME of a hub'
    )
    parser.add_argument('images', nargs='+', help='image files, URLs, or folders of images')
    parser.add_argument(
        '--recursive',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='also read the folders in a folder (default: yes)',
    )
    parser.add_argument(
        '--glob', metavar='PATTERN', help="only the images of a folder that fit, such as '*.jpg' or 'cat/*'"
    )
    parser.add_argument(
        '--topk', type=int, help='the largest number of labels of an image (default: 5; in a CSV: 1)'
    )
    parser.add_argument(
        '--threshold',
        type=float,
        metavar='0..1',
        help='an image whose best score is lower gets the answer unsure',
    )
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument(
        '--workers',
        type=int,
        default=2,
        help='threads that decode images while the network computes (default: %(default)s)',
    )
    parser.add_argument('--format', choices=('table', 'json', 'jsonl', 'csv'), default='table')
    parser.add_argument('--out', metavar='FILE', help='write there; the file appears when it is whole')
    parser.add_argument(
        '--on-error',
        choices=('skip', 'stop'),
        default='skip',
        help='if an image cannot be read: skip writes the error, continues, and ends with exit code 1; '
        'stop ends the command',
    )
    parser.add_argument(
        '--sort-into', metavar='DIR', help='copy each image into DIR/LABEL/, the folder of its best label'
    )
    parser.add_argument(
        '--save-masks',
        metavar='DIR',
        help='of a model of masks: write NAME.png, the class of each pixel, and NAME-drawn.jpg into DIR',
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1, … (default: the best device of the machine)')
    add_backbone(parser)
    parser.add_argument('--task', help='the task, for a model of several tasks')
    add_import(parser)
    args = parser.parse_args()
    run(lambda: _predict(args))


def _predict(args: argparse.Namespace) -> None:
    import_plugins(args.imports)
    images = [image for path in args.images for image in list_images(path, args.recursive, args.glob)]
    if args.out:
        refuse_input('--out', args.out, images)
    if args.save_masks:
        refuse_folder_of_inputs('--save-masks', args.save_masks, images)
    folder = str(find_model(args.model))
    with imports():
        from vet.cli.answers import Row, write_answers
        from vet.cli.save_masks import SaveMasks
        from vet.cli.sort_images import SortInto
        from vet.pipelines import pipeline
    classify = pipeline(model=folder, device=args.device, backbone=args.backbone)
    objective = classify.model.for_task(args.task).objective
    if args.sort_into and 'label' not in objective.columns:
        raise UserError('--sort-into needs labels, but the model gives numbers. Leave --sort-into out.')
    if args.save_masks and not objective.dense:
        raise UserError(
            f'--save-masks is {args.save_masks!r}, but the model gives no masks: its objective is '
            f'{objective.given["type"]!r}. Leave --save-masks out.'
        )
    masks = SaveMasks(args.save_masks, objective.names) if args.save_masks else None
    sort = SortInto(args.sort_into, images, args.images) if args.sort_into else None
    answers = classify(
        iter(images),
        1 if args.topk is None and args.format == 'csv' and objective.ranks else args.topk,
        args.batch_size,
        args.task,
        on_error='return' if args.on_error == 'skip' else 'raise',
        workers=args.workers,
        threshold=args.threshold,
    )
    adds = [keeper.add for keeper in (sort, masks) if keeper]
    failed = []

    def rows() -> Iterator[Row]:
        has_bar = bool(args.out) or not sys.stdout.isatty()
        for image, answer in counted(zip(images, answers), len(images), has_bar):
            if isinstance(answer, UserError):
                failed.append(image)
            else:
                for add in adds:
                    add(image, answer)
            yield printable(image), answer

    with _output(args.out) as write:
        for text in write_answers(rows(), args.format, list(map(printable, images)), objective):
            write(text)
    if failed:
        warn(
            f'{len(failed):,} of {len(images):,} images could not be read, such as {printable(failed[0])}; '
            'their rows hold the errors.'
        )
        sys.exit(1)


@contextmanager
def _output(path: str | None) -> Iterator[Callable[[str], object]]:
    """A function that writes a text at once: to stdout, or to a file that appears when the context ends."""
    if path is None:
        yield lambda text: print(text, end='', flush=True)
        return
    if Path(path).is_dir():
        raise UserError(f'--out is {path!r}, which is a folder. Give a file.')
    if not Path(path).absolute().parent.is_dir():
        raise UserError(f'--out is {path!r}, but its folder does not exist. Make the folder first.')
    with new_file(Path(path)) as file:
        yield lambda text: (file.write(text.encode()), file.flush())


def list_images(given: str, recursive: bool = True, glob: str | None = None) -> list[str]:
    """A folder's images, sorted.

    Any other path stays unchanged. DataError for a path that does not exist, and for a folder without images.
    recursive: whether the folders in the folder count. glob: a pattern, which the end of a path in the folder
        must fit.
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
    images = _fitting(found.images, given, recursive, glob)
    if not images:
        raise DataError(
            f'none of the {len(found.images):,} images in {given!r} fits --no-recursive or '
            f'--glob {glob!r}. Give another pattern, or leave these options out.'
        )
    return sorted(images)


def _fitting(images: Iterable[str], folder: str, recursive: bool, glob: str | None) -> list[str]:
    paths = {image: PurePath(image).relative_to(folder) for image in images}
    pattern = glob and glob.removeprefix('**/')
    return [
        image
        for image, path in paths.items()
        if (recursive or len(path.parts) == 1) and (not pattern or path.match(pattern))
    ]
