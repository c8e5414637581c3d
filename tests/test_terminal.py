"""No text of a stranger moves the cursor, colours the terminal or turns the direction of what stands
around it.
"""

import io
import json

import pytest
from rich.table import Table

from vet.cli.command import run
from vet.errors import UserError
from vet.escapes import escaped
from vet.terminal import Terminal

HOSTILE = [
    '\x1b[31m',
    '\x07',
    '\x08',
    '\r',
    '\x7f',
    '\x9b2J',
    '\x85',
    '\u202e',
    '\u2066',
    '\u200f',
    '\u2028',
    '\ufeff',
    '\udc80',
    '\U000e0041',
]


@pytest.mark.parametrize('text', HOSTILE)
def test_control_characters_are_shown(text, capsys):
    shown = escaped(f'cat{text}dog')
    assert shown.isprintable() and shown.startswith('cat\\u') and shown.endswith('dog')
    assert json.loads(f'"{shown}"') == f'cat{text}dog'
    stream = io.StringIO()
    terminal, table = (
        Terminal(file=stream, force_terminal=True, width=200, color_system=None, markup=False),
        Table(f'name{text}'),
    )
    table.add_row(f'cat{text}dog')
    terminal.print(table)
    terminal.print(f'cat{text}dog', soft_wrap=True)
    assert (
        not set(stream.getvalue()) & set(text) - set('[31m2J')
        and stream.getvalue().count(escaped(text[0])) == 3
    )

    def fail():
        raise UserError(f'the class {text}')

    with pytest.raises(SystemExit):
        run(fail)
    assert capsys.readouterr().err.strip('\n').isprintable()


def test_usual_texts_stay():
    for text in ('naïve Ω 漢字 हिन्दी', 'a\n\tb', 'می‌خواهم', '👩‍🔬', '[bold]'):
        assert escaped(text) == text
