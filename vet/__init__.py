"""vet: vision efficient tuning. A frozen pretrained backbone, a few trained numbers, a small file."""

from typing import Any

__version__ = '0.1.0'
__all__ = ['build_trainer', 'pipeline']


def __getattr__(name: str) -> Any:
    """The public functions, imported when they are first asked for: a plugin file imports vet's registries alone."""
    if name == 'build_trainer':
        from vet.builders import build_trainer
        return build_trainer
    if name == 'pipeline':
        from vet.pipeline import pipeline
        return pipeline
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
