"""Writes the masks of `vet predict`, and draws them over the images."""

import colorsys
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from vet.cli.command import free_name
from vet.core.objective import Answer
from vet.datasets.image import open_image
from vet.errors import UserError
from vet.files import write_file, writing
from vet.targets import IGNORED

SHARE = 0.5  # of the color in a drawing
TURN = 0.61803  # of the circle of hues, from a class to the next class


class SaveMasks:
    """Writes FOLDER/NAME.png, the class number of each pixel, with a palette; and FOLDER/NAME-drawn.jpg.

    FOLDER/classes.txt has the names of the classes, in the order of their numbers. A pixel without an answer
    has the number 255. If several images have one name, the names get numbers.
    UserError for a folder that cannot hold the files.
    """

    def __init__(self, folder: str, classes: Sequence[str]):
        self.folder = Path(folder)
        self.classes = list(classes)
        self._taken: set[str] = set()
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            names = self.folder / 'classes.txt'
            text = '\n'.join([*self.classes, ''])
            if names.exists() and names.read_text(encoding='utf-8') != text:
                raise UserError(
                    f'--save-masks is {folder!r}, which holds masks of other classes ({str(names)!r}). Give '
                    'another folder.'
                )
            write_file(names, text)

    def add(self, image: str, answer: Answer) -> None:
        opened = open_image(image)
        numbers_HW = np.full((opened.height, opened.width), IGNORED, np.uint8)
        for mask, label in zip(answer['masks'], answer['labels']):
            numbers_HW[mask > 0] = self.classes.index(label)
        indexed = Image.fromarray(numbers_HW, 'P')
        indexed.putpalette([value for number in range(256) for value in color(number)])
        drawn = Image.blend(opened, indexed.convert('RGB'), SHARE)
        name = free_name(PurePath(image.partition('?')[0]).stem, self._taken)
        with writing(self.folder):
            indexed.save(self.folder / f'{name}.png')
            drawn.save(self.folder / f'{name}-drawn.jpg', quality=90)


def color(number: int) -> tuple[int, int, int]:
    """The color of a class number. Neighbours differ much. IGNORED is black."""
    if number == IGNORED:
        return 0, 0, 0
    red, green, blue = colorsys.hsv_to_rgb(number * TURN % 1, 0.55 + 0.4 * (number % 2), 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)
