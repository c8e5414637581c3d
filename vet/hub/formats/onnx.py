"""onnx: the computation as one ONNX graph, for any number of images. The axes have names, such as `batch`.

Weights hold the tuners, if all tuners can be merged. Otherwise every tuner stands in the graph.
"""

from pathlib import Path
from typing import Any

import torch

from vet.core.model import ImageClassifier
from vet.errors import UserError
from vet.hub.formats.computation import Computation
from vet.hub.formats.format import GraphFormat, Network
from vet.hub.formats.torch_export import capture
from vet.hub.onnx_graph import OnnxGraph


class Onnx(GraphFormat):
    """Input 'images', output 'logits' or 'scores', see Computation. Read back with onnxruntime.

    metadata_props has the JSON text 'vet'. Weights of more than 2 GB lie beside the file, as <file>.data.
    """

    suffix = '.onnx'
    needs = ('onnxscript', 'onnxruntime')

    def write_graph(self, computation: Computation, model: ImageClassifier, path: Path, about: str) -> None:
        graph = capture(computation, model)
        try:
            program: Any = torch.onnx.export(
                graph,
                input_names=['images'],
                output_names=[computation.gives],
                dynamic_shapes=(dict(computation.axes),),  # names the axes; the lengths are those of `graph`
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise UserError(
                f'{model.backbone.sites.family} with its tuners has an operation that ONNX does not have; '
                f'export to torch-export. {" ".join(str(_cause(error)).split())[:300]}'
            ) from error
        for node in program.model.graph:
            node.metadata_props.clear()  # hundreds of nodes hold the names of vet's and timm's classes
        program.model.metadata_props['vet'] = about
        program.save(path)

    def read(self, path: Path, model: ImageClassifier) -> Network:
        return OnnxGraph(path)


def _cause(error: BaseException) -> BaseException:
    """The first error of a chain, which names the operation."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
