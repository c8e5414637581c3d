"""Config files: mmengine's .py with `_base_`, .yaml and .json."""

import ast
import re
import sys
from pathlib import Path

import vet.config.safe_yaml  # noqa: F401    mmengine reads YAML by it
from vet.config.plain import refuse_uncopied
from vet.errors import UserError
from vet.mmengine_parts import Config
from vet.shipped import bases, find_file


def load_config(path: str | Path, kind: str = 'configs') -> Config:
    """The config in a file, with its `_base_` parts. Its `custom_imports` are imported, also from the file's
    folder.

    A .py file is code, and runs. A .yaml or .json file is data, but its `_base_` and `custom_imports` may
    name code.

    path: a file, or the name of a file that vet ships. kind: of `shipped`.
    """
    path = find_file(path, kind)
    for folder in (str(path.parent.resolve()), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        return Config.fromfile(str(path))
    except UserError as error:
        raise UserError(f'the config {str(path)!r} cannot be read: {error}') from error
    except Exception as error:  # the user's Python may raise any error
        if isinstance(error, TypeError):
            refuse_uncopied(error)
        raise UserError(
            f'the config {str(path)!r} cannot be read: {type(error).__name__}: {error}'
        ) from error


def names_in_files(path: str | Path | None) -> set[str]:
    """The names that a config file and its `_base_` files use. Empty without a file."""
    if path is None or not Path(path).is_file():
        return set()
    text = Path(path).read_text(encoding='utf-8', errors='replace')
    used = set(re.findall(r'_base_\.(\w+)', text))
    if Path(path).suffix != '.py':
        return used
    tree = ast.parse(text)
    used |= {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    return used.union(*map(names_in_files, bases(Path(path))))
