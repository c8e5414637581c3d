"""The ways out of vet, by name: a class each, which writes a classifier as another library reads it,
and reads it back so.
"""

from vet.hub.exports.format import Format
from vet.hub.exports.onnx import Onnx
from vet.hub.exports.peft import Peft
from vet.hub.exports.torch_export import TorchExport
from vet.hub.exports.weights import BackboneWeights, TimmWeights, TorchvisionWeights

FORMATS: dict[str, Format] = {
    'backbone': BackboneWeights(),
    'timm': TimmWeights(),
    'torchvision': TorchvisionWeights(),
    'onnx': Onnx(),
    'torch-export': TorchExport(),
    'peft': Peft(),
}
