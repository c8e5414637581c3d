"""docs/errors.md quotes messages that vet's code has."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUOTED = re.findall(r'^> (.*)$', (ROOT / 'docs/errors.md').read_text(), re.MULTILINE)


def text_of(node):
    """The text of a string of the code, with … for each value."""
    if isinstance(node, ast.Constant):
        return node.value
    return ''.join(part.value if isinstance(part, ast.Constant) else '…' for part in node.values)


def messages():
    for path in (ROOT / 'vet').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr) or (
                isinstance(node, ast.Constant) and isinstance(node.value, str)
            ):
                yield text_of(node)


def test_each_message_of_the_page_is_in_the_code():
    known = '\n'.join(messages())
    assert len(QUOTED) > 15
    assert [text for text in QUOTED if text.removesuffix('…') not in known] == []
