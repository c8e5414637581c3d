"""torch-export: the computation as one graph of torch.export, for any number of images.

Tuners that cannot be merged are included.
"""

from pathlib import Path

import torch

from vet.core.model import ImageClassifier
from vet.errors import UserError
from vet.hub.exports.format import Format, Network


class TorchExport(Format):
    """For `torch.export.load(file).module()(images)`."""

    suffix = '.pt2'
    tolerance = 1e-4

    def write(self, model: ImageClassifier, path: Path, about: str) -> None:
        torch.export.save(capture(model), path, extra_files={'vet.json': about})

    def read(self, path: Path, model: ImageClassifier) -> Network:
        return torch.export.load(path).module()


def capture(model: ImageClassifier) -> torch.export.ExportedProgram:
    """The graph: images (B, 3, H, W) -> logits (B, K).

    UserError if torch cannot trace the graph for every B.
    """
    images = torch.zeros(2, 3, *model.backbone.preprocessing.size)
    try:  # strict, because otherwise len(images) in a tuner would fix B
        program = torch.export.export(
            model, (images,), dynamic_shapes=({0: torch.export.Dim('batch')},), strict=True
        )
    except Exception as error:  # torch._dynamo and others raise errors of many kinds
        tuners = ', '.join(type(tuner).__name__ for tuner in model.tuners) or 'no tuner'
        raise UserError(
            f'torch.export cannot draw the graph of {model.backbone.sites.family} with {tuners} for every '
            f'number of images: {type(error).__name__}: {next(iter(str(error).strip().splitlines()), "")}'
        ) from error
    for graph in filter(None, (getattr(module, 'graph', None) for module in program.graph_module.modules())):
        for node in graph.nodes:
            node.meta.pop('stack_trace', None)  # paths and source lines of this machine must not leave it
    return program
