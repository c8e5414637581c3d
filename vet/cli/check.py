"""Looks at photos before a training: broken files, copies, class names, suspect labels."""

import argparse
import csv
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vet.cli.command import Parser, run
from vet.cli.signals import imports
from vet.errors import UserError
from vet.files import refuse_input, write_file

if TYPE_CHECKING:
    from vet.check.findings import Finding
    from vet.check.photos import Photos
    from vet.check.sameness import Seen


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('photos', help='a folder of class folders, a CSV or an archive, as for `vet fit`')
    parser.add_argument(
        '--backbone',
        metavar='NAME',
        help='also look for suspect labels, outliers and classes that overlap, by the features of small, '
        'base, large, or a network of timm',
    )
    parser.add_argument('--checkpoint', metavar='FILE', help='the weights of --backbone NAME')
    parser.add_argument('--format', choices=('text', 'json'), default='text')
    parser.add_argument('--strict', action='store_true', help='exit with code 1 if something is wrong')
    parser.add_argument(
        '--write',
        metavar='FILE',
        help='write a CSV path,label,split of the photos to keep: without broken files, with one photo of '
        'each set of equal photos, and without photos that are in two classes',
    )
    parser.add_argument(
        '--page', metavar='FILE', help='write a page that shows the photos of each finding: check.html'
    )
    args = parser.parse_args()
    run(lambda: _check(args))


def _check(args: argparse.Namespace) -> None:
    with imports():
        from vet.check.findings import findings, says
        from vet.check.page import check_page
        from vet.check.photos import is_archive, read_photos
        from vet.check.sameness import look
    if args.write and is_archive(Path(args.photos)):
        raise UserError(
            f'--write lists the paths of photos, but the photos are in the archive {args.photos!r}. Unpack '
            'the archive, and give the folder.'
        )
    with tempfile.TemporaryDirectory() as unpacked:
        photos = read_photos(Path(args.photos), Path(unpacked))
        for option, path in (('--write', args.write), ('--page', args.page)):
            if path:
                refuse_input(option, path, [args.photos, *(photo.path for photo in photos.photos)])
        looks = look([photo.path for photo in photos.photos])
        found = findings(photos, looks)
        if args.backbone or args.checkpoint:
            found += _of_labels(args, photos, looks)
        if args.format == 'json':
            print(json.dumps([finding.as_json() for finding in found], indent=1))
        else:
            print(photos.says())
            print('\n'.join(says(found)) or 'Nothing unusual was found.')
        # after the findings: they are not lost if the disk refuses a file
        if args.write:
            _write(Path(args.write), photos, looks)
        if args.page:
            write_file(Path(args.page), check_page(photos, found))
    if args.strict and any(finding.is_wrong for finding in found):
        sys.exit(1)


def _of_labels(args: argparse.Namespace, photos: 'Photos', looks: 'list[Seen]') -> 'list[Finding]':
    with imports():
        from vet.check.labels import features_of, label_findings
        from vet.fit.choices import backbone_entry
        from vet.registry import BACKBONES
    readable = [photo for photo, seen in zip(photos.photos, looks) if not seen.error]
    backbone = BACKBONES.build(backbone_entry(args.backbone, args.checkpoint))
    return list(label_findings(readable, features_of(backbone, [photo.path for photo in readable])))


def _write(path: Path, photos: 'Photos', looks: 'list[Seen]') -> None:
    with imports():
        from vet.check.sameness import to_leave_out
    text = io.StringIO()
    rows = csv.writer(text, lineterminator='\n')
    rows.writerow(('path', 'label', 'split'))
    left_out = to_leave_out(photos.photos, looks)
    for photo in photos.photos:
        if photo.path not in left_out:
            rows.writerow((Path(photo.path).absolute(), photo.label, photo.split or ''))
    write_file(path, text.getvalue())
