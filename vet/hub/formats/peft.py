"""peft: the tuners and the head as an adapter of PEFT, for timm's network of the same weights."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from vet.core.model import ImageClassifier
from vet.files import write_file
from vet.hub.formats.format import Format, Network
from vet.hub.peft import TENSORS, save_peft


class Peft(Format):
    """Writes a folder that PEFT reads, see `save_peft`.

    `PeftModel.from_pretrained(timm.create_model(name, num_classes=K, …), folder)`
    """

    suffix = ''
    needs = ('peft',)

    def write(self, model: ImageClassifier, path: Path, about: str) -> None:
        save_peft(model, path)
        write_file(path / TENSORS, save(load_file(path / TENSORS), metadata=dict(format='pt', vet=about)))

    def read(self, path: Path, model: ImageClassifier) -> Network:
        from peft import PeftModel

        for tuner in reversed(list(model.tuners)):
            tuner.detach()
        network: Any = model.backbone.network
        if model.head.state_dict():
            network.reset_classifier(model.objective.num_outputs)
        return PeftModel.from_pretrained(network, path).eval()
