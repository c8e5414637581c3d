"""int8: the weights of an ONNX graph's linear layers in 8 bits, by onnxruntime's dynamic quantiser.

Each output channel of a weight has its own scale. Activations get their scale from the values of each batch,
while the graph runs. So no calibration images are needed, and the few large activations of transformers do
not spoil a scale that was fixed before. Convolutions stay in float32: onnxruntime has no dynamic form for
them with a scale for each channel.
"""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vet.core.objective import Objective
from vet.errors import UserError
from vet.hub.onnx_graph import OnnxGraph

LAYERS = ('MatMul', 'Gemm')


def quantise(path: Path) -> None:
    """Writes the graph again, with 8 bits for the weights of linear layers. The metadata stay.

    UserError if the graph has no linear layer with a weight.
    """
    import onnx
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, made = path.with_suffix('.prepared.onnx'), path.with_suffix('.int8.onnx')
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # the quantiser warns of every norm, which has no channels
    try:
        quant_pre_process(path, prepared)
        quantize_dynamic(prepared, made, op_types_to_quantize=list(LAYERS), per_channel=True)
    finally:
        logger.setLevel(level)
    prepared.unlink()
    graph: Any = onnx.load(made)
    if not any(node.op_type in ('MatMulInteger', 'DynamicQuantizeMatMul') for node in graph.graph.node):
        raise UserError(
            'the network has no linear layer whose weight could have 8 bits, and int8 leaves convolutions as '
            'they are. Leave --int8 out.'
        )
    os.replace(made, path)


class GraphClassifier(nn.Module):
    """An ONNX graph of normalised images in place of its classifier, for evaluation on the CPU."""

    def __init__(self, path: Path, objective: Objective):
        super().__init__()
        self.graph = OnnxGraph(path)
        self.objective = objective

    def for_task(self, task: str | None = None) -> 'GraphClassifier':
        """The classifier itself: a graph has one task."""
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """normalised images (B, 3, H, W) -> logits (B, K)"""
        return self.graph(images.float())
