"""A reader understands each expression at once: no comprehension in another, no chain of ternaries, and
no tuple of unrelated things.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [
    path
    for room in ('vet', 'tools', 'benchmarks', 'examples', 'website')
    for path in (ROOT / room).rglob('*.py')
]
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


def kind(value: ast.expr) -> str:
    """The form of an expression. Two calls of one function have one form. So have one attribute or one item of two
    things. Two names, constants or containers have one form only if they are equal.
    """
    if isinstance(value, ast.Call):
        return f'call of {ast.unparse(value.func).rpartition(".")[2]}'
    if isinstance(value, ast.Attribute):
        return f'attribute {value.attr}'
    if isinstance(value, ast.Subscript):
        return f'item {ast.unparse(value.slice)}'
    if isinstance(value, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp | ast.BinOp):
        return type(value).__name__
    return ast.unparse(value)


def unrelated(source: str) -> list[int]:
    """The lines that assign values of several kinds at once, though one statement after the other would do."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign) or len(node.targets) > 1:
            continue
        target = node.targets[0]
        value = node.value
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            read = {ast.unparse(part) for part in ast.walk(value)}
            depends = any(ast.unparse(part) in read for part in target.elts)
            if not depends and len(set(map(kind, value.elts))) > 1:
                lines.append(node.lineno)
    return lines


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_statement_assigns_one_thing_or_things_of_one_kind(path):
    assert unrelated(path.read_text()) == [], 'write one statement for each name'


def test_unrelated_assignments_are_found():
    assert unrelated('rows, count = [], 0\nself.a, b = x, f(c)\na, b = x, y\na, b = 1, 2') == [1, 2, 3, 4]
    assert unrelated("self.a, self.b = a, b\na, b = c.a, c.b\na, b = c['a'], c['b']") == [1, 2, 3]
    assert unrelated('a, b = f(x), f(y)\na, b = b, 2 * a\na, b = pair\na, b = x.size, y.size') == []
    assert unrelated('A, B = BOTH = 1, 2') == []


VAGUE = {'found', 'given', 'kept', 'own'}
OF_QKV = {  # 'part' is the term here: the q, k or v of a fused projection, as in the argument `parts`
    ROOT / 'vet/core/attention.py',
    *(ROOT / 'vet/tuners' / f'{name}.py' for name in ('lora', 'prefix', 'scaling', 'sct')),
}


def vague_loops(source: str, vague: set[str] = VAGUE) -> list[int]:
    """The lines of loops and comprehensions whose variable does not say what it is."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.For | ast.comprehension):
            names = {name.id for name in ast.walk(node.target) if isinstance(name, ast.Name)}
            lines += [node.target.lineno] if names & vague else []
    return lines


def test_names_of_loops_say_what_they_are():
    wrong = {str(path.relative_to(ROOT)): vague_loops(path.read_text()) for path in VET}
    assert {path: lines for path, lines in wrong.items() if lines} == {}


def test_no_variable_is_called_own():
    """A variable says what the thing is: the tensors of a model, the names of vet, the forward of an instance."""
    named = [
        f'{path.relative_to(ROOT)}:{node.lineno}'
        for path in VET
        for node in ast.walk(ast.parse(path.read_text()))
        if 'own' in (getattr(node, 'id', ''), getattr(node, 'arg', ''))
    ]
    assert named == []


def test_no_loop_calls_a_thing_a_part():
    wrong = {str(path.relative_to(ROOT)): vague_loops(path.read_text(), {'part'}) for path in FILES}
    termed = {str(path.relative_to(ROOT)) for path in OF_QKV}
    assert {path: lines for path, lines in wrong.items() if lines and path not in termed} == {}
    assert [path for path in termed if not wrong[path]] == [], 'take the file off the list'


def test_vague_loops_are_found():
    assert vague_loops('[part for part in parts]', {'part'}) == [1]
    assert vague_loops('for given in images: ...\n[x for i, (x, own) in rows]\nfor image in given: ...') == [
        1,
        2,
    ]


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


IGNORED = re.compile(r'# type: ignore\b(?!\[[\w, -]+\]  # \S)')


def test_each_ignored_type_error_says_its_code_and_its_reason():
    """After the comment at the line, or in a comment above the line."""
    silent = []
    for path in VET:
        lines = ['', *path.read_text().splitlines()]
        for above, line in zip(lines, lines[1:]):
            if IGNORED.search(line) and not above.strip().startswith('#'):
                silent.append(f'{path.relative_to(ROOT)}: {line.strip()}')
    assert silent == []


def test_silent_ignores_are_found():
    assert IGNORED.search('x = 1  # type: ignore') and IGNORED.search('x = 1  # type: ignore[misc]')
    assert IGNORED.search('x = 1  # type: ignore  # because')
    assert not IGNORED.search('x = 1  # type: ignore[misc, arg-type]  # because')


def uses_of_any(source: str) -> int:
    """How often an expression names `Any`. The import does not count."""
    return sum(isinstance(node, ast.Name) and node.id == 'Any' for node in ast.walk(ast.parse(source)))


def test_types_are_named():
    """`Any` stays rare: 17.4 in a thousand lines before, 10 at most. Lower the limit with the number."""
    sources = [path.read_text() for path in VET]
    lines = sum(len(source.splitlines()) for source in sources)
    assert 1000 * sum(map(uses_of_any, sources)) / lines <= 9.5


def test_uses_of_any_are_found():
    assert uses_of_any('from typing import Any\ndef f(x: Any, y: list[Any]) -> Any: ...') == 3
    assert uses_of_any('"""Any image."""\nx: object = "Any"') == 0
