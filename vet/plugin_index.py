"""The plugins that the files of a room register, read from the files' text.

Nothing is imported. So a list of names, or the refusal of a wrong name, need not wait for torch.
"""

import ast
import importlib.util
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Listed:
    """A plugin, as its file describes the plugin.

    module: the file's module. text: the docstring of the plugin; without a docstring, that of the module.
    arguments: the names of the plugin's arguments. None: the text of the plugin does not give all names,
        because the plugin inherits them or takes any.
    constants: the class attributes that are plain values.
    """

    module: str
    text: str
    arguments: tuple[str, ...] | None
    constants: dict[str, object]


@dataclass(frozen=True)
class Index:
    """plugins: by name. computed: the modules that register further names in a loop.

    Only the import of these modules gives the further names.
    """

    plugins: dict[str, Listed]
    computed: list[str]


@cache
def read_index(home: str) -> Index:
    """The index of a room. home: a package, such as vet.tuners, or a single module."""
    found = Index({}, [])
    for module, path in _files(home):
        text = path.read_text(encoding='utf-8')
        if 'register_module' in text:
            _read_file(module, ast.parse(text), found)
    return found


def _files(home: str) -> Iterator[tuple[str, Path]]:
    spec = importlib.util.find_spec(home)
    if spec is None or spec.origin is None:
        return
    yield home, Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        for module in pkgutil.iter_modules([folder]):
            yield f'{home}.{module.name}', Path(folder, f'{module.name}.py')


def _read_file(module: str, tree: ast.Module, found: Index) -> None:
    decorators = set()
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        for decorator in filter(_registers, node.decorator_list):
            assert isinstance(decorator, ast.Call)
            decorators.add(decorator)
            listed = Listed(
                module,
                ast.get_docstring(node) or ast.get_docstring(tree) or '',
                _arguments(node),
                _constants(node),
            )
            found.plugins.update(dict.fromkeys(_names(decorator, node.name), listed))
    if any(_registers(node) and node not in decorators for node in ast.walk(tree)):
        found.computed.append(module)


def _registers(node: ast.AST) -> bool:
    """Whether the node is a call of REGISTRY.register_module."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == 'register_module'
    )


def _names(decorator: ast.Call, class_name: str) -> list[str]:
    given = [keyword.value for keyword in decorator.keywords if keyword.arg == 'name']
    names = ast.literal_eval(given[0]) if given else class_name
    return [names] if isinstance(names, str) else list(names)


def _arguments(node: ast.ClassDef | ast.FunctionDef) -> tuple[str, ...] | None:
    makers = [
        statement
        for statement in node.body
        if isinstance(statement, ast.FunctionDef) and statement.name == '__init__'
    ]
    maker = node if isinstance(node, ast.FunctionDef) else next(iter(makers), None)
    if maker is None or maker.args.kwarg and not isinstance(maker.args.kwarg.annotation, ast.Subscript):
        return None  # `**names: Unpack[Names]` gives all names; the tuners have them of core/peft_names.py
    given = [*maker.args.posonlyargs, *maker.args.args, *maker.args.kwonlyargs]
    return tuple(argument.arg for argument in given if argument.arg != 'self')


def _constants(node: ast.ClassDef | ast.FunctionDef) -> dict[str, object]:
    found: dict[str, object] = {}
    for statement in node.body if isinstance(node, ast.ClassDef) else ():
        target = (
            statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, 'target', None)
        )
        value = getattr(statement, 'value', None)
        if isinstance(target, ast.Name) and value is not None:
            try:
                found[target.id] = ast.literal_eval(value)
            except ValueError:
                continue  # a computed value
    return found
