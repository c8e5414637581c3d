"""Printing on a terminal. Names and texts of strangers never reach the terminal as control sequences."""

from typing import Any

from rich.console import Console
from rich.text import Text

from vet.escapes import escaped


class Terminal(Console):
    """rich's Console. Control characters are shown escaped, in tables too."""

    # vet passes on rich's many options without naming them
    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        return super().render_str(escaped(text), **options)
