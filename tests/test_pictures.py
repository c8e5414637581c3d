"""The picture of README.md shows what the result file holds."""

import re
from pathlib import Path

from tests.test_claims import script

ROOT = Path(__file__).parents[1]


def test_the_picture_is_that_of_the_result_file():
    pictures = script('pictures')
    drawn, kept = pictures.tuners(), pictures.PICTURE.read_text()

    def runs(text):
        return set(re.findall(r'run-([\w-]+)"', text))

    assert runs(kept) == runs(drawn) == set(pictures.points()) - {'LinearProbe'}
    assert set(pictures.NAMED) <= set(pictures.points())
    # another version of Matplotlib may write the same dots in another way
    dots = re.compile(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"')
    near = [tuple(map(float, dot)) for dot in dots.findall(kept)]
    assert len(near) > 20
    for (x, y), (left, top) in zip(near, dots.findall(drawn), strict=True):
        assert abs(x - float(left)) < 3 and abs(y - float(top)) < 3
