"""A user's own network as the backbone of a classifier, for vet's trainer and for `pipeline`.

The network keeps its classifier, which trains whole, as with `vet.tune`. So `vet.load` opens what the trainer
saves. builders.py and pipelines.py use this file.
"""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import nn

from vet.backbones.own import OwnBackbone
from vet.core.plain_network import require_network
from vet.core.tuner import Tuner
from vet.errors import DataError, UserError, shown
from vet.files import JsonObject
from vet.hub.model_folder import read_configuration
from vet.hub.names import find_folder
from vet.hub.network_folder import described_network, require_same
from vet.library import whole_parameters


def backbone_to_train(
    network: object, train: str | Iterable[str] = (), preprocessing: Mapping[str, object] | None = None
) -> OwnBackbone:
    """The backbone of a user's network. Its classifier trains, and the parameters that `train` names.

    The buffers that its forward changes are kept too.
    """
    require_network(network)
    assert isinstance(network, nn.Module)
    backbone = OwnBackbone(network, whole_parameters(network, train), preprocessing or {})
    backbone.keep_moving()
    return backbone


def backbone_of_folder(folder: str | Path, network: object) -> OwnBackbone:
    """The backbone of a user's network for a folder. DataError if the folder was tuned on another network."""
    require_network(network)
    assert isinstance(network, nn.Module)
    configuration = read_configuration(find_folder(folder))
    described = described_network(configuration, str(folder))
    if described is None:
        raise DataError(
            f'{str(folder)!r} was not tuned on a network of yours: leave network=… out, '
            f'vet.pipeline({str(folder)!r}).'
        )
    network = copy.deepcopy(network)  # a backbone is frozen and edited; the user's network stays as it is
    backbone = OwnBackbone(network, described['whole'], configuration.get('preprocessing') or {})
    require_same(described, backbone.described, str(folder))
    entry = dict(configuration['model']['backbone'], sha256=backbone.identity['sha256'])
    backbone.identity = backbone.origin = entry
    return backbone


def entries_of(tuners: object) -> list[JsonObject]:
    """The entries of a config for tuners, each an object or an entry already."""
    if not isinstance(tuners, list | tuple) or not tuners:
        raise UserError(f'tuners is {shown(tuners)}; give a list of tuners: tuners=[vet.LoRA(rank=8)].')
    for tuner in tuners:
        if not isinstance(tuner, Tuner | Mapping):
            raise UserError(f'a tuner is {shown(tuner)}; allowed: tuners of vet, such as vet.LoRA(rank=8).')
    return [tuner.entry() if isinstance(tuner, Tuner) else dict(tuner) for tuner in tuners]
