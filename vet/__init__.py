"""vet: vision efficient tuning. vet trains a few numbers on a frozen pretrained backbone, and saves a small
file.

The public names stand in vet/__init__.pyi, which editors read. Each name is imported at its first use,
because torch, timm and torchvision import slowly.
"""

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = '0.2.0'


def _homes() -> dict[str, str]:
    """{public name: its module}, from vet/__init__.pyi."""
    stub = ast.parse(Path(__file__).with_suffix('.pyi').read_text(encoding='utf-8'))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {name.name: str(node.module) for node in imports for name in node.names}


_HOMES = _homes()
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
