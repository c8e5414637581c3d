"""OnnxGraph: an ONNX file of vet, computed by onnxruntime on the CPU.

The exports read their files back with this class. vet/serve answers with this class.
"""

from pathlib import Path

import torch


class OnnxGraph:
    """images (B, …) -> the output of the graph, (B, K).

    gives: the name of the output, 'logits' or 'scores'. about: the metadata of the file.
    onnxruntime raises errors of many kinds for a broken file.
    """

    def __init__(self, path: Path):
        from onnxruntime import InferenceSession  # imported here, because onnxruntime may be missing

        self._session = InferenceSession(path, providers=['CPUExecutionProvider'])
        self.gives: str = self._session.get_outputs()[0].name
        self.about: dict[str, str] = self._session.get_modelmeta().custom_metadata_map

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self._session.run(None, {'images': images.cpu().numpy()})[0])
