"""An ONNX file as onnxruntime computes it: the output, the output's name, and the metadata."""

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from vet.core.objective import build_objective
from vet.hub.formats.int8 import GraphClassifier
from vet.hub.onnx_graph import OnnxGraph


@pytest.fixture
def graph_file(tmp_path):
    """A graph of the mean over pixels: images (B, 3, 2, 2) -> logits (B, 3)."""
    images = helper.make_tensor_value_info('images', TensorProto.FLOAT, ['batch', 3, 2, 2])
    logits = helper.make_tensor_value_info('logits', TensorProto.FLOAT, ['batch', 3])
    mean = helper.make_node('ReduceMean', ['images'], ['logits'], axes=[2, 3], keepdims=0)
    model = helper.make_model(
        helper.make_graph([mean], 'mean', [images], [logits]),
        opset_imports=[helper.make_opsetid('', 13)],
        ir_version=8,
    )
    helper.set_model_props(model, dict(vet='{"classes": []}'))
    onnx.save(model, tmp_path / 'mean.onnx')
    return tmp_path / 'mean.onnx'


def test_a_graph_computes_and_says_what_it_holds(graph_file):
    graph, images = OnnxGraph(graph_file), torch.randn(2, 3, 2, 2)
    assert graph.gives == 'logits' and graph.about == dict(vet='{"classes": []}')
    torch.testing.assert_close(graph(images), images.mean((2, 3)))


def test_a_graph_stands_for_its_classifier_in_an_evaluation(graph_file):
    classifier = GraphClassifier(graph_file, build_objective(None, ['a', 'b', 'c']))
    images = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    assert classifier.for_task() is classifier.for_task(None) is classifier
    torch.testing.assert_close(classifier(images), images.float().mean((2, 3)))


def test_a_broken_file_is_no_graph(tmp_path):
    (tmp_path / 'broken.onnx').write_bytes(b'broken')
    with pytest.raises(Exception, match='broken.onnx'):
        OnnxGraph(tmp_path / 'broken.onnx')
