"""Copies images into a folder for each answer."""

import filecmp
import itertools
import os
import shutil
from pathlib import Path

from vet.core.objective import Answer
from vet.errors import UserError
from vet.files import new_file, writing
from vet.lock import FileLock

UNLABELLED = 'no label'  # the folder of images whose answer has no label


class SortInto:
    """Copies each image into FOLDER/LABEL/. The images themselves stay where they are.

    An image of several labels is copied into the folder of its best label. A file that is there is never
    written over: a file of the same content counts as the copy, and other files get a number.
    UserError for a folder that cannot hold the copies.
    """

    def __init__(self, folder: str, images: list[str], given: list[str]):
        self.folder = Path(folder)
        if urls := [image for image in images if '://' in image]:
            raise UserError(f'--sort-into copies files, but {urls[0]!r} is a URL. Give files or folders.')
        for source in given:
            if Path(source).is_dir() and self.folder.resolve().is_relative_to(Path(source).resolve()):
                raise UserError(
                    f'--sort-into is {folder!r}, which lies in {source!r}, the folder of the images. The '
                    'next call would find the copies too. Give a folder outside.'
                )
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, image: str, answer: Answer) -> None:
        label = answer['labels'][0] if answer['labels'] else UNLABELLED
        place = self.folder / folder_name(label)
        # another process may copy the same images into this folder
        with writing(place), FileLock(self.folder).held():
            place.mkdir(exist_ok=True)
            _copy(Path(image), place)


def folder_name(label: str) -> str:
    """The label as the name of a folder.

    Characters that a name of a folder cannot hold, or that lead elsewhere, stand as %XX.
    """
    name = ''.join(
        f'%{ord(char):02X}' if char in '/\\:*?"<>|%' or not char.isprintable() else char for char in label
    )
    return f'%{ord(name[0]):02X}{name[1:]}' if name[:1] in ('.', ' ') else name or '%'


def _copy(image: Path, place: Path) -> None:
    for number in itertools.count(1):
        target = place / (image.name if number == 1 else f'{image.stem}-{number}{image.suffix}')
        if not os.path.lexists(target):
            break
        if target.is_file() and filecmp.cmp(image, target, shallow=False):
            return
    with new_file(target) as file, image.open('rb') as source:
        shutil.copyfileobj(source, file)
    shutil.copystat(image, target)
