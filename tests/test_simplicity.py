"""A reader understands each expression at once: no comprehension in another, no chain of ternaries."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for room in ('vet', 'tools', 'benchmarks', 'examples') for path in (ROOT / room).rglob('*.py')]
VET = [path for path in FILES if path.is_relative_to(ROOT / 'vet')]
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def nested(source: str) -> list[int]:
    """The lines of comprehensions that hold another comprehension, and of ternaries that hold another."""
    lines = []
    for kind in (COMPREHENSIONS, ast.IfExp):
        for outer in ast.walk(ast.parse(source)):
            if isinstance(outer, kind):
                inner = [node for node in ast.walk(outer) if isinstance(node, kind)]
                lines += [outer.lineno] if len(inner) > 1 else []
    return lines


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_expression_is_nested(path):
    assert nested(path.read_text()) == [], 'write statements with names'


def test_nested_expressions_are_found():
    assert nested('[[x for x in row] for row in rows]') == [1]
    assert nested('\n{x: any(y for y in x) for x in rows}') == [2]
    assert nested('a if b else c if d else e') == [1]
    assert nested('[x if x else y for x in rows]; (a if b else c) + (d if e else f)') == []


@pytest.mark.parametrize('path', VET, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_long(path):
    """A longer file holds more than one concept."""
    assert len(path.read_text().splitlines()) <= 400


def test_every_file_says_what_it_is():
    silent = [
        path
        for path in VET
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []
