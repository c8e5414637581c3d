"""Answers of `pipeline` as JSON: the same values, with masks as PNG files in base64."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from vet.core.objective import Answer


def plain(answer: Answer) -> dict[str, Any]:
    """An answer for JSON. A mask (H, W) of 0 and 1 becomes a PNG file of two levels in base64."""
    return {key: _plain(value) for key, value in answer.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _png(value)
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _png(mask_HW: np.ndarray) -> str:
    data = io.BytesIO()
    Image.fromarray(mask_HW.astype(bool)).save(data, 'PNG')
    return base64.b64encode(data.getvalue()).decode('ascii')
