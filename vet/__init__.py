"""vet: vision efficient tuning. vet trains a few numbers on a frozen pretrained backbone, and saves a small
file.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = '0.1.0'
__all__ = ['build_trainer', 'pipeline']

if TYPE_CHECKING:
    from vet.builders import build_trainer
    from vet.pipelines import pipeline

_HOMES = dict(build_trainer='vet.builders', pipeline='vet.pipelines')


def __getattr__(name: str) -> Any:
    """Imports build_trainer and pipeline at their first use, because torch, timm and torchvision import
    slowly.
    """
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_HOMES[name]), name)
