"""torch-export: the computation as one graph of torch.export, for any number of images.

Weights hold the tuners, if all tuners can be merged. Otherwise every tuner stands in the graph.
"""

from pathlib import Path

import torch

from vet.core.model import ImageClassifier
from vet.errors import UserError
from vet.hub.formats.computation import Computation
from vet.hub.formats.format import GraphFormat, Network


class TorchExport(GraphFormat):
    """Writes a file for `torch.export.load(file).module()(images)`."""

    suffix = '.pt2'

    def write_graph(self, computation: Computation, model: ImageClassifier, path: Path, about: str) -> None:
        torch.export.save(capture(computation, model), path, extra_files={'vet.json': about})

    def read(self, path: Path, model: ImageClassifier) -> Network:
        return torch.export.load(path).module()


def capture(computation: Computation, model: ImageClassifier) -> torch.export.ExportedProgram:
    """The graph of a computation of `model`. The model is merged, if all its tuners can be merged.

    A merged graph is smaller. Some tuners cannot be drawn otherwise: the forward of OFT solves equations.
    UserError if torch cannot trace the graph for every length of the axes.
    """
    if all(tuner.mergeable for tuner in model.tuners):
        model.merge()
    lengths = {axis: torch.export.Dim(name) for axis, name in computation.axes.items()}
    try:  # strict, because otherwise len(images) in a tuner would fix the number of images
        program = torch.export.export(
            computation.module, (computation.example,), dynamic_shapes=(lengths,), strict=True
        )
    except Exception as error:  # torch._dynamo and others raise errors of many kinds
        tuners = ', '.join(type(tuner).__name__ for tuner in model.tuners) or 'no tuner'
        raise UserError(
            f'torch.export cannot draw the graph of {model.backbone.sites.family} with {tuners} for every '
            f'{" and ".join(computation.axes.values())}: {type(error).__name__}: '
            f'{next(iter(str(error).strip().splitlines()), "")}'
        ) from error
    for graph in filter(None, (getattr(module, 'graph', None) for module in program.graph_module.modules())):
        for node in graph.nodes:
            node.meta.pop('stack_trace', None)  # paths and source lines of this machine must not leave it
    return program
