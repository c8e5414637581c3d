"""A user's own network as the backbone of a classifier, for vet's trainer and for `pipeline`.

The network keeps its classifier, which trains whole, as with `vet.tune`. So `vet.load` opens what the trainer
saves. builders.py and pipelines.py use this file.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vet.backbones.libraries import classifier_of, image_size_of
from vet.backbones.roles import find_layout
from vet.core.backbone import Backbone
from vet.core.preprocessing import Preprocessing
from vet.core.tuner import Tuner
from vet.errors import DataError, UserError, shown
from vet.files import JsonObject
from vet.hub.model_folder import read_configuration
from vet.hub.names import find_folder
from vet.hub.network_folder import describe, require_same
from vet.library import require_network, whole_parameters


class OwnBackbone(Backbone):
    """A user's network, which gives logits (K,) for each image, alone or in an object of its library.

    whole: the names of the parameters that train whole.
    """

    pooling = 'build it with a classifier, which gives logits (K,) for each image'

    def __init__(self, network: nn.Module, whole: Sequence[str], preprocessing: Mapping[str, object]):
        size = image_size_of(network)
        wanted = Preprocessing().with_changes(dict(size=size) if size else {})
        patches: Any = getattr(network, 'patch_embed', None)
        layout = find_layout(
            network,
            None,
            getattr(patches, 'grid_size', None),
            getattr(network, 'num_prefix_tokens', 0),
            tuple(classifier_of(network)),
        )
        described = describe(network, whole)
        identity = dict(type='network', name=type(network).__name__)
        super().__init__(network, layout, wanted.with_changes(preprocessing), identity, wanted)
        self.identity = self.origin = dict(identity, sha256=described['sha256'])
        self.whole = list(whole)
        self.described = dict(described, whole=self.whole)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) -> logits (B, K)"""
        out, place = self.network(images), self.sites.calls[''].place
        return out if place is None else out[place]


def backbone_to_train(
    network: object, train: str | Iterable[str] = (), preprocessing: Mapping[str, object] | None = None
) -> OwnBackbone:
    """The backbone of a user's network. Its classifier trains, and the parameters that `train` names."""
    require_network(network)
    assert isinstance(network, nn.Module)
    return OwnBackbone(network, whole_parameters(network, train), preprocessing or {})


def backbone_of_folder(folder: str | Path, network: object) -> OwnBackbone:
    """The backbone of a user's network for a folder. DataError if the folder was tuned on another network."""
    require_network(network)
    assert isinstance(network, nn.Module)
    configuration = read_configuration(find_folder(folder))
    described = configuration.get('network')
    if not isinstance(described, dict):
        raise DataError(
            f'{str(folder)!r} was not tuned on a network of yours: leave network=… out, '
            f'vet.pipeline({str(folder)!r}).'
        )
    require_same(described, describe(network, described['whole']), str(folder))
    return OwnBackbone(network, described['whole'], configuration.get('preprocessing') or {})


def entries_of(tuners: object) -> list[JsonObject]:
    """The entries of a config for tuners, each an object or an entry already."""
    if not isinstance(tuners, list | tuple) or not tuners:
        raise UserError(f'tuners is {shown(tuners)}; give a list of tuners: tuners=[vet.LoRA(rank=8)].')
    for tuner in tuners:
        if not isinstance(tuner, Tuner | Mapping):
            raise UserError(f'a tuner is {shown(tuner)}; allowed: tuners of vet, such as vet.LoRA(rank=8).')
    return [tuner.entry() if isinstance(tuner, Tuner) else dict(tuner) for tuner in tuners]
