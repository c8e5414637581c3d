"""Small pictures within a page."""

import base64
import io
from collections.abc import Callable, Sequence
from html import escape

import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from vet.datasets.image import open_image
from vet.report.page import element

PIXELS = 160  # of the longer side


def thumbnail(image: object) -> str:
    """The image as a small JPEG in a data URL."""
    small = to_pil_image(image) if isinstance(image, torch.Tensor) else open_image(image)
    small = small.convert('RGB')
    small.thumbnail((PIXELS, PIXELS), Image.Resampling.BILINEAR)
    data = io.BytesIO()
    small.save(data, 'JPEG', quality=80)
    return f'data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}'


def captioned(read: Callable[[], object], lines: Sequence[str], name: str) -> str:
    """A figure of the image that `read` gives, with the lines below. name: for screen readers."""
    caption = '<br>'.join(map(escape, lines))
    try:
        drawn = f'<img src="{thumbnail(read())}" alt="{escape(name)}">'
    except Exception as error:  # a user's dataset may raise any error, and a page needs no image
        drawn = element('p', f'no image: {error}')
    return f'<figure>{drawn}<figcaption>{caption}</figcaption></figure>'
