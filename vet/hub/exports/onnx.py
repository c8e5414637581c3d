"""onnx: the computation as one ONNX graph, for any number of images.

Tuners that cannot be merged are included.
"""

from pathlib import Path
from typing import Any

import torch

from vet.core.model import ImageClassifier
from vet.errors import UserError
from vet.hub.exports.format import Format, Network
from vet.hub.exports.torch_export import capture


class Onnx(Format):
    """Input 'images' (batch, 3, H, W), normalised; output 'logits' (batch, K); read back with onnxruntime.

    metadata_props has the JSON text 'vet'. Weights of more than 2 GB lie beside the file, as <file>.data.
    """

    suffix = '.onnx'
    needs = ('onnxscript', 'onnxruntime')
    tolerance = 1e-4

    def write(self, model: ImageClassifier, path: Path, about: str) -> None:
        graph = capture(model)
        try:
            program: Any = torch.onnx.export(
                graph, input_names=['images'], output_names=['logits'], dynamo=True, verbose=False
            )
        except torch.onnx.OnnxExporterError as error:
            raise UserError(
                f'{model.backbone.sites.family} with its tuners has an operation that ONNX does not have; '
                f'export to torch-export. {" ".join(str(error).split())[:300]}'
            ) from error
        for node in program.model.graph:
            node.metadata_props.clear()  # hundreds of nodes hold the names of vet's and timm's classes
        program.model.metadata_props['vet'] = about
        program.save(path)

    def read(self, path: Path, model: ImageClassifier) -> Network:
        from onnxruntime import InferenceSession

        session = InferenceSession(path, providers=['CPUExecutionProvider'])
        return lambda images: torch.from_numpy(session.run(['logits'], {'images': images.numpy()})[0])
