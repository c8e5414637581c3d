"""vet: vision efficient tuning. A frozen pretrained backbone, a few trained numbers, a small file."""

__version__ = '0.1.0'
__all__ = ['build_trainer', 'pipeline']

# At once, not when first asked for: importing the module vet.pipeline later would put it in the place of the function.
from vet.builders import build_trainer
from vet.pipeline import pipeline
