"""Texts of strangers, for a terminal: control characters become visible escapes."""

import re
import unicodedata

KEPT = '\n\t'
# controls (C0, C1), formats (also those that turn the direction of writing), surrogates, separators
SHOWN = ('Cc', 'Cf', 'Cs', 'Zl', 'Zp')
FORMULA = ('=', '+', '-', '@', '\t')
NUMBERS = re.compile(r'[-+\d.,|e ]*')
JOINERS = '\u200c\u200d'  # Persian, Hindi and emoji need these


def escaped(text: str) -> str:
    """`text` with each control character, and each that changes the direction of writing, as \\uXXXX (as in
    JSON).
    """
    return ''.join(
        _escape(char) if unicodedata.category(char) in SHOWN and char not in KEPT + JOINERS else char
        for char in text
    )


def cell(text: str) -> str:
    """A text for a cell of a CSV file. Control characters are escaped.

    Spreadsheet programs compute a text that begins with one of FORMULA, which may open a URL. Such a text
    gets an apostrophe before it, unless the text holds only numbers.
    """
    text = escaped(text)
    return f"'{text}" if text.startswith(FORMULA) and not NUMBERS.fullmatch(text) else text


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x10000:
        return f'\\u{code:04x}'
    return f'\\u{0xD800 + (code - 0x10000 >> 10):04x}\\u{0xDC00 + (code - 0x10000 & 0x3FF):04x}'
