"""The files that vet ships for users: configs, recipes, suites and examples.

A checkout has these files at its top. An installed vet has them in vet/shipped_files, in the same layout, so
that a `_base_` of a file finds its file in both.
"""

import ast
import difflib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vet.errors import UnknownNameError, UserError

INSTALLED = Path(__file__).parent / 'shipped_files'
TOP = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[1]
FOLDERS = dict(
    configs='configs', suites='benchmarks/suites', examples='examples', recipes='configs/_base_/recipes'
)
SUFFIXES = ('.py', '.yaml', '.yml', '.json')


def shipped(kind: str) -> dict[str, Path]:
    """{name: file} of a kind of FOLDERS, sorted. An example that is a folder stands for its config.py."""
    folder = TOP / FOLDERS[kind]
    found = {path.stem: path for path in folder.glob('*.py')}
    if kind == 'examples':
        found |= {path.parent.name: path for path in folder.glob('*/config.py')}
    return dict(sorted(found.items()))


def find_file(given: str | Path, kind: str) -> Path:
    """The file that `given` means: a path, else the name of a shipped file of this kind.

    The name may have the suffix .py. UserError, with the nearest names, if there is no such file.
    """
    path = Path(given)
    names = shipped(kind)
    if path.is_file():
        return path
    is_name = path.parent == Path() and path.suffix in ('', '.py')
    if is_name and path.stem in names:
        return names[path.stem]
    if not path.suffix:
        raise UnknownNameError(kind.removesuffix('s'), str(given), names, 'Or give a file that exists.')
    near = difflib.get_close_matches(path.stem, names, n=3)
    meant = f' Did you mean {" or ".join(map(repr, near))}?' if near else ''
    raise UserError(
        f'the {kind.removesuffix("s")} {str(path)!r} does not exist.{meant} Give a .py, .yaml or .json file, '
        f'or one of the names that `vet list {kind}` shows, such as {(near or sorted(names, key=len))[0]}.'
    )


def title(path: Path) -> str:
    """The first paragraph of a file's docstring, in one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
    return ' '.join(text.partition('\n\n')[0].split())


def bases(path: Path) -> list[Path]:
    """The files that the `_base_` of a Python config names."""
    if path.suffix != '.py':
        return []
    found: list[Path] = []
    for node in ast.parse(path.read_text(encoding='utf-8', errors='replace')).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id == '_base_':
            names = (constant.value for constant in ast.walk(node) if isinstance(constant, ast.Constant))
            found += (path.parent / str(name) for name in names)
    return found


def copy_shipped(name: str, folder: Path) -> list[Path]:
    """Copies a shipped file, and the files that the file is based on, below `folder`. Returns the copies.

    name: of a config, suite, example or recipe. suites/quickstart is the suite, if a config has the name too.
    UserError if a copy would change a file that is there.
    """
    known = {f'{kind}/{name}': path for kind in FOLDERS for name, path in shipped(kind).items()}
    short = {key.partition('/')[2]: path for key, path in reversed(known.items())}
    if name not in known and name not in short:
        raise UnknownNameError('shipped config', name, short)
    files = sorted({path.resolve() for path in _with_bases((known | short)[name])})
    anchor = os.path.commonpath([path.parent for path in files])
    copies = {path: folder / path.relative_to(anchor) for path in files}
    for path, copied in copies.items():
        if copied.exists() and copied.read_bytes() != path.read_bytes():
            raise UserError(
                f'{str(copied)!r} is there, and differs from the file that vet ships; give another folder.'
            )
    for path, copied in copies.items():
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
    return list(copies.values())


def _with_bases(path: Path) -> Iterator[Path]:
    yield path
    if path.name == 'config.py':
        yield from path.parent.glob('*.py')  # an example's own plugins
    for base in bases(path):
        yield from _with_bases(base)
