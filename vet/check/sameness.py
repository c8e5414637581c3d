"""Reads each photo once: finds broken files, exact copies, and photos that look the same."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vet.check.photos import Photo
from vet.datasets.image import open_image
from vet.errors import DataError

NEAR = 4  # bits of 64 in which the marks of two photos that look the same may differ
FLAT = 6  # a photo with fewer set bits, or fewer unset bits, is nearly of one colour: its mark says nothing
ROWS = 1024  # photos that are compared with all others at once


@dataclass(frozen=True)
class Seen:
    """The facts of a file that was read once.

    pixels: the sha256 of the RGB pixels. mark: 64 bits that small changes keep.
    size: (width, height), and mode: of the file. turned: whether a tag of the camera turns the image.
    error: why the file cannot be read.
    """

    pixels: bytes = b''
    mark: int = 0
    size: tuple[int, int] = (0, 0)
    mode: str = ''
    turned: bool = False
    error: str = ''


def look(paths: Sequence[str], threads: int | None = None) -> list[Seen]:
    """Decodes each file once."""
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        return list(pool.map(_look, paths))


def _look(path: str) -> Seen:
    try:
        image = open_image(path)
    except DataError as error:
        return Seen(error=str(error))
    with Image.open(path) as file:
        size = file.size
        mode = file.mode
        turned = file.getexif().get(ExifTags.Base.Orientation, 1) != 1
    pixels = hashlib.sha256(f'{image.size} '.encode() + image.tobytes()).digest()
    return Seen(pixels, difference_hash(image), size, mode, turned)


def to_leave_out(photos: Sequence[Photo], looks: Sequence[Seen]) -> dict[str, str]:
    """{path: reason} of broken files, of all but one of equal photos, and of equal photos in two classes."""
    reasons = {photo.path: 'broken' for photo, seen in zip(photos, looks) if seen.error}
    equal: dict[bytes, list[Photo]] = {}
    for photo, seen in zip(photos, looks):
        if not seen.error:
            equal.setdefault(seen.pixels, []).append(photo)
    for same in equal.values():
        if len({photo.label for photo in same}) > 1:
            reasons |= {photo.path: 'copies with different classes' for photo in same}
        else:
            # a copy in test stays, so that training does not see the photo
            _, *others = sorted(same, key=lambda photo: photo.split != 'test')
            reasons |= {photo.path: 'copies of other photos' for photo in others}
    return reasons


def difference_hash(image: Image.Image) -> int:
    """dHash: 64 bits, each of which says whether a pixel of the 9 x 8 gray image is darker than its right
    neighbour.

    Source: N. Krawetz, "Kind of like that", 2013. Another size and another JPEG quality change few bits.
    """
    pixels = np.asarray(image.convert('L').resize((9, 8), Image.Resampling.LANCZOS), dtype=np.int16)
    bits = (pixels[:, 1:] > pixels[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), 'big')


def near_pairs(marks: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs (first, other), first < other, that join photos that look the same.

    A group holds each photo whose mark differs in at most NEAR bits from the mark of another photo of the
    group. Each photo of a group, except the first, has one pair. Flat photos have no pair.
    """
    marks_N = np.array(marks, dtype=np.uint64)
    set_bits = np.bitwise_count(marks_N)
    telling = np.flatnonzero((set_bits >= FLAT) & (set_bits <= 64 - FLAT))
    group_N = np.arange(len(marks_N))
    for start in range(0, len(telling), ROWS):
        rows = telling[start : start + ROWS]
        near_RN = np.bitwise_count(marks_N[rows, None] ^ marks_N[None, telling]) <= NEAR
        row, column = np.nonzero(near_RN)
        edges = group_N[rows[row]], group_N[telling[column]]
        graph = coo_array((np.ones(len(row), bool), edges), (len(marks_N), len(marks_N)))
        group_N = connected_components(graph, directed=False)[1][group_N]
    first: dict[int, int] = {}
    return [
        (first[group], item)
        for item, group in enumerate(group_N.tolist())
        if first.setdefault(group, item) != item
    ]


def groups_of(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The group of each of `count` items. Items of a pair are in one group. A group's number is its first
    item.
    """
    group = list(range(count))

    def first(item: int) -> int:
        while group[item] != item:
            group[item] = group[group[item]]
            item = group[item]
        return item

    for one, other in pairs:
        low, high = sorted((first(one), first(other)))
        group[high] = low
    return [first(item) for item in range(count)]
