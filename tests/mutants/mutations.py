"""Small faults that can be put into a Python file: each is one edit of the text, found in the syntax tree."""

import ast
import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

COMPARE = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
OTHER_NAME = {
    'min': 'max',
    'any': 'all',
    'zeros': 'ones',
    'zeros_like': 'ones_like',
    'mean': 'sum',
    'startswith': 'endswith',
    'argmax': 'argmin',
    'partition': 'rpartition',
    'floor': 'ceil',
    'amin': 'amax',
    'train': 'eval',
}
OTHER_NAME |= {other: name for name, other in OTHER_NAME.items()}
UNWRAPPED = {'sorted', 'deepcopy', 'abs', 'reversed', 'sqrt', 'cached', 'expanduser'}  # f(x) becomes x
# x.f() becomes x
UNCHAINED = {
    'detach',
    'clone',
    'contiguous',
    'copy',
    'float',
    'double',
    'cpu',
    'resolve',
    'strip',
    'lower',
    'casefold',
    'expanduser',
    'eval',
    'to',
    'absolute',
    'flatten',
    'sqrt',
    'abs',
    'long',
    'coalesce',
    'mT',
    't',
}
DECORATORS = {
    'no_grad',
    'inference_mode',
    'cache',
    'lru_cache',
    'once_differentiable',
    'custom_fwd',
    'custom_bwd',
}
TEXT = (str, bytes)
PATH = re.compile(r'path|folder|root|cache|dir|parent', re.IGNORECASE)  # a / between two of these joins paths


@dataclass(frozen=True)
class Mutation:
    """One edit of one file. `old` and `new` are the edited lines without their indentation; they and
    `scope` name the mutation.
    """

    file: str
    scope: str
    old: str
    new: str
    line: int
    source: bytes

    @property
    def room(self) -> str:
        return self.file.split('/')[1]

    @property
    def is_valid(self) -> bool:
        try:
            compile(self.source, self.file, 'exec')
        except SyntaxError:
            return False
        return True

    def order(self, seed: int) -> str:
        """A number that does not change with the other mutations: a sample stays the same when other
        code changes.
        """
        return sha256('\0'.join([str(seed), self.file, self.scope, self.old, self.new]).encode()).hexdigest()


def mutations(source: bytes, file: str) -> list[Mutation]:
    """Every mutation of a file, each once. A few of them leave no valid Python."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found = {}
    for scope, (row, column, end_row, end_column), text in _edits(ast.parse(source), ''):
        begin, end = starts[row - 1] + column, starts[end_row - 1] + end_column
        mutated = source[:begin] + text.encode() + source[end:]
        old = _shown(source[starts[row - 1] : starts[end_row]])
        new = _shown(source[starts[row - 1] : begin] + text.encode() + source[end : starts[end_row]])
        if old != new:
            found.setdefault((scope, old, new), Mutation(file, scope, old, new, row, mutated))
    return list(found.values())


def _shown(lines: bytes) -> str:
    return ' '.join(lines.decode().split())


def _edits(node: ast.AST, scope: str) -> Iterator[tuple[str, tuple[int, int, int, int], str]]:
    """(scope, place, text): this text instead of what stands at this place."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        scope = f'{scope}.{node.name}'.lstrip('.')
        for decorator in node.decorator_list:
            if _name(decorator) in DECORATORS:
                yield (
                    scope,
                    (
                        decorator.lineno,
                        decorator.col_offset - 1,
                        decorator.end_lineno,
                        decorator.end_col_offset,
                    ),
                    '',
                )
    if isinstance(node, ast.stmt):
        for place, text in _of_statement(node):
            yield scope, place, text
    elif isinstance(node, ast.ExceptHandler) and not isinstance(node.body[0], ast.Raise):
        yield scope, _span(node.body[0], node.body[-1]), 'raise'
    elif isinstance(node, ast.comprehension):
        for test in node.ifs:
            yield scope, _span(test), f'(not ({ast.unparse(test)}))'
    elif isinstance(node, ast.expr):
        for other in _of_expression(node):
            yield scope, _span(node), f'({ast.unparse(other)})'
    for child in _children(node):
        yield from _edits(child, scope)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """What is worth a mutation: no annotation, no decorator, no text of an error or of a format, no
    assertion, no indentation of a file.
    """
    skipped = {'annotation', 'returns', 'decorator_list', 'bases', 'type_comment'}
    if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom)):
        return
    if isinstance(node, ast.keyword) and node.arg == 'indent':
        return
    if isinstance(node, ast.FunctionDef) and node.name == '__repr__':
        return
    for field, value in ast.iter_fields(node):
        if field not in skipped:
            yield from (
                child
                for child in (value if isinstance(value, list) else [value])
                if isinstance(child, ast.AST)
            )


def _span(first: ast.AST, last: ast.AST | None = None) -> tuple[int, int, int, int]:
    last = last or first
    return first.lineno, first.col_offset, last.end_lineno, last.end_col_offset


def _of_statement(node: ast.stmt) -> Iterator[tuple[tuple[int, int, int, int], str]]:
    if isinstance(node, (ast.If, ast.While)):
        if not isinstance(node.test, ast.Compare) or type(node.test.ops[0]) not in (
            ast.Eq,
            ast.NotEq,
            ast.In,
            ast.NotIn,
            ast.Is,
            ast.IsNot,
        ):
            yield _span(node.test), f'not ({ast.unparse(node.test)})'
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield _span(node), 'pass'
    elif isinstance(node, ast.Raise) or isinstance(node, (ast.Assign, ast.AugAssign)) and _is_state(node):
        yield _span(node), 'pass'
    elif isinstance(node, ast.Continue):
        yield _span(node), 'break'
    elif isinstance(node, ast.Break):
        yield _span(node), 'continue'
    elif isinstance(node, ast.Delete):
        yield _span(node), 'pass'
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield _span(node), 'return None'
    elif isinstance(node, ast.With):
        yield from _without_an_item(node)
    elif isinstance(node, ast.For):
        yield _span(node.iter), 'list(' + ast.unparse(node.iter) + ')[1:]'
    if isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC and not _is_text(node.value):
        other = copy.deepcopy(node)
        other.op = ARITHMETIC[type(node.op)]()
        yield _span(node), ast.unparse(other)


def _is_state(node: ast.Assign | ast.AugAssign) -> bool:
    """Whether an assignment changes more than a name of the function: a dropped name would only be missed."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return all(isinstance(target, (ast.Attribute, ast.Subscript)) for target in targets) or isinstance(
        node, ast.AugAssign
    )


def _without_an_item(node: ast.With) -> Iterator[tuple[tuple[int, int, int, int], str]]:
    """The statement without one of its contexts that bind no name."""
    for i, item in enumerate(node.items):
        if item.optional_vars is None:
            kept = node.items[:i] + node.items[i + 1 :]
            text = 'with ' + ', '.join(map(ast.unparse, kept)) if kept else 'if True'
            last = node.items[-1].optional_vars or node.items[-1].context_expr
            yield (node.lineno, node.col_offset, last.end_lineno, last.end_col_offset), text


def _of_expression(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            if type(operator) in COMPARE:
                other = copy.deepcopy(node)
                other.ops[i] = COMPARE[type(operator)]()
                yield other
    elif isinstance(node, ast.BoolOp):
        other = copy.deepcopy(node)
        other.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield other
        for i in range(len(node.values)):
            kept = node.values[:i] + node.values[i + 1 :]
            yield kept[0] if len(kept) == 1 else ast.BoolOp(node.op, kept)
    elif isinstance(node, ast.BinOp):
        yield from _of_operation(node)
    elif (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, (ast.Not, ast.USub))
        and not isinstance(node.operand, ast.Constant)
    ):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.Constant):
        yield from _of_constant(node)
    elif isinstance(node, ast.Call):
        yield from _of_call(node)
    elif (
        isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Slice)
        and isinstance(node.ctx, ast.Load)
    ):
        for bound in ('lower', 'upper'):
            if getattr(node.slice, bound) is not None:
                other = copy.deepcopy(node)
                setattr(other.slice, bound, None)
                yield other


def _of_operation(node: ast.BinOp) -> Iterator[ast.expr]:
    is_path = isinstance(node.op, ast.Div) and (
        _is_text(node.right) or bool(PATH.search(ast.unparse(node.left)))
    )
    if _is_none(node.right):  # `str | None` is a type
        return
    if isinstance(node.op, (ast.BitOr, ast.BitAnd)):
        yield node.left
        yield node.right
    elif (
        type(node.op) in ARITHMETIC
        and not is_path
        and not any(
            _is_text(side) or isinstance(side, (ast.List, ast.Tuple)) for side in (node.left, node.right)
        )
    ):
        yield ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)


def _of_constant(node: ast.Constant) -> Iterator[ast.expr]:
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
    elif isinstance(node.value, float):
        yield ast.Constant(node.value * 2 or 1.0)


def _of_call(node: ast.Call) -> Iterator[ast.expr]:
    name = _name(node)
    if name in OTHER_NAME:
        other = copy.deepcopy(node)
        if isinstance(other.func, ast.Attribute):
            other.func.attr = OTHER_NAME[name]
        else:
            other.func.id = OTHER_NAME[name]
        yield other
    if name in UNWRAPPED and len(node.args) == 1:
        yield node.args[0]
    if name in UNCHAINED and isinstance(node.func, ast.Attribute):
        yield node.func.value
    for i, keyword in enumerate(node.keywords):
        if keyword.arg not in (None, 'indent'):
            yield ast.Call(node.func, node.args, node.keywords[:i] + node.keywords[i + 1 :])


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        return _name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, 'id', '')


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or isinstance(node, ast.Constant) and isinstance(node.value, TEXT)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
