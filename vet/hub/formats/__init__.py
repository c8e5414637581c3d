"""The export formats, by name. Each is a class, which writes a classifier and reads the file back."""

from vet.hub.formats.format import Format
from vet.hub.formats.onnx import Onnx
from vet.hub.formats.peft import Peft
from vet.hub.formats.torch_export import TorchExport
from vet.hub.formats.weights import BackboneWeights, TimmWeights, TorchvisionWeights

FORMATS: dict[str, Format] = {
    'backbone': BackboneWeights(),
    'timm': TimmWeights(),
    'torchvision': TorchvisionWeights(),
    'onnx': Onnx(),
    'torch-export': TorchExport(),
    'peft': Peft(),
}
