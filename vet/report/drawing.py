"""The style of all drawings in pages, and a figure of Matplotlib as the text of an <svg> element."""

import hashlib
import io
import re
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

FRONT = '#0b6bcb'
BELOW = '#8a929c'
STYLE: Any = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'vet',
    'text.parse_math': False,
    'font.size': 9,
    'axes.edgecolor': BELOW,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.axisbelow': True,
    'axes.grid': True,
    'grid.color': '#e3e6ea',
    'legend.frameon': False,
}


def svg(figure: Figure) -> str:
    """The figure as an <svg> element. Its ids occur in no other figure of the page."""
    file = io.StringIO()
    FigureCanvasSVG(figure).print_svg(file, metadata=dict.fromkeys(('Creator', 'Date', 'Format', 'Type')))
    text = file.getvalue()[file.getvalue().index('<svg') :]
    return re.sub(r'( id="|url\(#|href="#)', rf'\g<1>{hashlib.sha256(text.encode()).hexdigest()[:8]}-', text)
