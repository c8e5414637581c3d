"""The export formats, by name. Each is a class, which writes a classifier and reads the file back."""

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
