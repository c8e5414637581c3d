"""No text of a stranger moves the cursor, colours the terminal or turns the direction of what stands
around it.
"""

import io
import json

import numpy as np
import pytest
from rich.table import Table

from vet.cli.command import run
from vet.core.objective import build_objective
from vet.errors import UserError
from vet.escapes import cell, escaped
from vet.report.answered import Answered, predictions_csv
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


@pytest.mark.parametrize(
    'text', ['=HYPERLINK("http://127.0.0.1")', '+1+cmd|x!A0', '-2+3+cmd|x', '@SUM(A1)', '\t=1+cmd']
)
def test_no_cell_of_a_table_is_a_formula(text):
    assert cell(text) == f"'{escaped(text)}"


@pytest.mark.parametrize('text', ['cat', '-1', '-0.25|1e-05', '+3', 'a=b', '0.5', ''])
def test_other_cells_stay_as_they_are(text):
    assert cell(text) == text


def test_a_formula_as_a_class_name_reaches_no_table(tmp_path):
    part = Answered(
        build_objective(dict(type='SingleLabel'), ['=1+cmd', 'b']),
        np.array([[2.0, 1.0]]),
        np.array([0]),
        ['@x.png'],
        lambda number: None,
        [1, 1],
    )
    assert predictions_csv([part]).decode().splitlines()[1].startswith("'@x.png,'=1+cmd,'=1+cmd,")
