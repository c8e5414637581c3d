"""vet: vision efficient tuning. A frozen pretrained backbone, a few trained numbers, a small file."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = '0.1.0'
__all__ = ['build_trainer', 'pipeline']

if TYPE_CHECKING:
    from vet.builders import build_trainer
    from vet.pipelines import pipeline

_HOMES = dict(build_trainer='vet.builders', pipeline='vet.pipelines')


def __getattr__(name: str) -> Any:
    """build_trainer and pipeline when they are first asked for: torch, timm and torchvision take
    seconds to import.
    """
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_HOMES[name]), name)
