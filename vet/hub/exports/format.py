"""Format: the base of what a classifier is exported as."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from vet.core.model import ImageClassifier

Network = Callable[
    [torch.Tensor], torch.Tensor
]  # normalised images (B, 3, H, W) -> logits (B, K) or features (B, C)


class Format:
    """Writes a classifier, and reads it back with the library that it is for: what was read must compute what
    the classifier did.

    suffix: of the file; '' for a folder. needs: the libraries beside vet's own.
    tolerance: the largest difference that is let pass, of outputs up to 1; of larger ones, relative to the
        largest.
    """

    suffix = '.safetensors'
    needs: tuple[str, ...] = ()
    tolerance = 1e-5

    def part(self, model: ImageClassifier) -> nn.Module:
        """What is exported of the classifier: all of it."""
        return model

    def write(self, model: ImageClassifier, path: Path, about: str) -> None:
        """Writes `path`, with the JSON text `about` in it. The model may be used up. UserError for what
        the format cannot hold.
        """
        raise NotImplementedError(f'{type(self).__name__} must write write(model, path, about)')

    def read(self, path: Path, model: ImageClassifier) -> Network:
        """What `path` computes. model: the one that was written, as `write` left it."""
        raise NotImplementedError(f'{type(self).__name__} must write read(path, model)')
