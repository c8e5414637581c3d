"""Plain files of weights.

The trained updates are merged into the network's tensors, which keep their names.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from vet.core.model import ImageClassifier
from vet.errors import UserError
from vet.files import JsonObject, write_file
from vet.hub.formats.format import Format, Network
from vet.registry import HEADS

Tensors = dict[str, torch.Tensor]


class BackboneWeights(Format):
    """The backbone without the head, for model.backbone.checkpoint.

    If the backbone keeps its classifier, the classifier is part of the file.
    """

    def part(self, model: ImageClassifier) -> nn.Module:
        return model.backbone

    def write(self, model: ImageClassifier, path: Path, about: str) -> None:
        left = sorted({type(tuner).__name__ for tuner in model.tuners if not tuner.mergeable})
        if left:
            raise UserError(
                f'{" and ".join(left)} cannot be merged into plain weights: such a tuner edits the flow '
                'through the network. Export to onnx or torch-export, which can hold it.'
            )
        tensors = {name: tensor.detach().contiguous().clone() for name, tensor in self.tensors(model).items()}
        write_file(path, save(tensors, metadata=dict(vet=about)))

    def tensors(self, model: ImageClassifier) -> Tensors:
        """All tensors of the file."""
        return model.merge().state_dict()

    def read(self, path: Path, model: ImageClassifier) -> Network:
        network = model.backbone.network
        network.load_state_dict(load_file(path))
        return network


class _Library(BackboneWeights):
    """The backbone with the head as its classifier, for a network of the library.

    The library makes the network by name, with the same number of classes.
    """

    source: str  # the type of the backbone, which is also the library's name

    def make(self, identity: JsonObject, options: JsonObject) -> nn.Module:
        """Makes the network with the library's own function."""
        raise NotImplementedError(f'{type(self).__name__} must write make(identity, options)')

    def network(self, model: ImageClassifier, **options: object) -> nn.Module:
        """The library's network for the backbone's name and arguments, with the model's number of classes."""
        identity = model.backbone.origin
        if identity['type'] != self.source:
            raise UserError(
                f'the backbone is {identity["type"]!r}, which {self.source} does not make by a name; '
                f'allowed: {self.source!r}. Export to backbone, onnx or torch-export.'
            )
        return self.make(
            identity, {**identity['kwargs'], 'num_classes': model.objective.num_outputs, **options}
        ).eval()

    def part(self, model: ImageClassifier) -> nn.Module:
        return model

    def tensors(self, model: ImageClassifier) -> Tensors:
        network = self.network(model)
        head = model.head.state_dict()
        merged = super().tensors(model)
        if not head:  # Pretrained: the classifier is the backbone's
            return merged
        if set(head) != {'fc.weight', 'fc.bias'}:
            raise UserError(
                f'the head {HEADS.called(model.head)!r} cannot be the classifier of '
                f"{self.source}'s network, which is one Linear. Export to onnx or torch-export, which can "
                'hold the head.'
            )
        places = sorted({name.rpartition('.')[0] for name in network.state_dict() if name not in merged})
        if len(places) != 1 or type(network.get_submodule(places[0])) is not nn.Linear:
            classifiers = (
                ', '.join(f'{place} ({type(network.get_submodule(place)).__name__})' for place in places)
                or 'nowhere'
            )
            raise UserError(
                f'the classifier of {model.backbone.origin["name"]} is {classifiers}, not one Linear, so '
                'that the head has no place in it. Export to onnx or torch-export.'
            )
        return merged | {name.replace('fc', places[0], 1): tensor for name, tensor in head.items()}


class TimmWeights(_Library):
    """Writes a file for `timm.create_model(name, num_classes=K, checkpoint_path=file, **kwargs)`."""

    source = 'timm'

    def make(self, identity: JsonObject, options: JsonObject) -> nn.Module:
        import timm  # imported here, because the import takes seconds

        return timm.create_model(identity['name'], **options)

    def read(self, path: Path, model: ImageClassifier) -> Network:
        return self.network(model, checkpoint_path=str(path))


class TorchvisionWeights(_Library):
    """For `torchvision.models.get_model(name, num_classes=K, **kwargs).load_state_dict(load_file(file))`."""

    source = 'torchvision'

    def make(self, identity: JsonObject, options: JsonObject) -> nn.Module:
        from torchvision import models

        if identity.get('pool'):
            raise UserError(
                f"model.backbone.pool is {identity['pool']!r}, which torchvision's {identity['name']} does "
                'not have. Export to onnx or torch-export, which can hold it.'
            )
        return models.get_model(identity['name'], weights=None, **options)

    def read(self, path: Path, model: ImageClassifier) -> Network:
        network = self.network(model)
        network.load_state_dict(load_file(path))
        return network
