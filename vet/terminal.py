"""What is printed on a terminal: names and texts of strangers never reach it as control sequences."""

import unicodedata
from typing import Any

from rich.console import Console
from rich.text import Text

KEPT = '\n\t'
SHOWN = (
    'Cc',
    'Cf',
    'Cs',
    'Zl',
    'Zp',
)  # controls (C0, C1), formats (also those that turn the direction), surrogates, separators
JOINERS = '\u200c\u200d'  # which Persian, Hindi and emoji are written with


def escaped(text: str) -> str:
    """`text` with each control character, and each that changes the direction of writing, as \\uXXXX
    (as JSON has it).
    """
    return ''.join(
        _escape(char) if unicodedata.category(char) in SHOWN and char not in KEPT + JOINERS else char
        for char in text
    )


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x10000:
        return f'\\u{code:04x}'
    return f'\\u{0xD800 + (code - 0x10000 >> 10):04x}\\u{0xDC00 + (code - 0x10000 & 0x3FF):04x}'


class Terminal(Console):
    """rich's Console, which shows control characters escaped, in tables too."""

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        return super().render_str(escaped(text), **options)
