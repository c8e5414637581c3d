"""Format: the base class of the export formats."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from vet.core.model import ImageClassifier
from vet.hub.formats.computation import Computation, of_images

# images -> logits (B, K), features (B, C) or scores (B, K)
Network = Callable[[torch.Tensor], torch.Tensor]


class Format:
    """Writes a classifier, and reads the file back with the library of the format.

    The network that was read must compute the same as the classifier.
    suffix: of the file; '' for a folder.
    needs: the libraries that vet itself does not need.
    tolerance: the largest allowed difference, for outputs up to 1. For larger outputs, the difference is
        relative to the largest output.
    """

    suffix = '.safetensors'
    needs: tuple[str, ...] = ()
    tolerance = 1e-5

    def part(self, model: ImageClassifier) -> nn.Module:
        """The part of the classifier that is exported. Here: the whole classifier."""
        return model

    def write(self, model: ImageClassifier, path: Path, about: str) -> None:
        """Writes `path`, with the JSON text `about` in the file.

        The model may be changed, and then is of no further use. UserError if the format cannot hold the
        model.
        """
        raise NotImplementedError(f'{type(self).__name__} must write write(model, path, about)')

    def read(self, path: Path, model: ImageClassifier) -> Network:
        """The network that `path` holds. model: the written model, as `write` left it."""
        raise NotImplementedError(f'{type(self).__name__} must write read(path, model)')


class GraphFormat(Format):
    """A format that holds a whole computation, also one that begins with pixels."""

    tolerance = 1e-4

    def write(self, model: ImageClassifier, path: Path, about: str) -> None:
        self.write_graph(of_images(model), model, path, about)

    def write_graph(self, computation: Computation, model: ImageClassifier, path: Path, about: str) -> None:
        """Writes a computation of `model`. See `write`."""
        raise NotImplementedError(
            f'{type(self).__name__} must write write_graph(computation, model, path, about)'
        )
