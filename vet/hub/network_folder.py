"""The model folder of a user's own network: configuration.json and tuner.safetensors.

The folder describes the network that was tuned: its class, its tensors and the settings of its modules. So
`load` can refuse another network, and say what differs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

import vet
from vet.core.merge import merged_error
from vet.core.model import load_into, require_fit
from vet.core.preprocessing import Preprocessing
from vet.core.tensor_file import read_tensors, sha256_of
from vet.core.tuned_network import TunedNetwork
from vet.errors import DataError, UserError
from vet.files import JsonObject, publish_folder, write_file
from vet.hub.model_folder import AGAIN, CONFIGURATION, FORMAT, TENSORS, tensors_sha256

# What is compared, in this order, and the advice if something differs
DIFFERENCES = dict(
    shapes='Build the network that was tuned.',
    settings='Build the network with the arguments that it had then.',
    values='Give the network the weights that it had then.',
)


def save_network(
    tuned: TunedNetwork, folder: Path, classes: list[str], backbone: JsonObject, images: Preprocessing
) -> None:
    """Publishes the model folder of a tuned network by one rename.

    backbone: the entry of model.backbone.
    images: their preprocessing.
    """
    if tuned.is_merged:
        raise merged_error('saved')
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tuned.trained_state().items()})
    configuration = dict(
        framework='pytorch',
        task='vision-efficient-tuning',
        vet_version=vet.__version__,
        model=dict(
            backbone=backbone, head=dict(type='Pretrained'), tuners=[tuner.entry() for tuner in tuned.tuners]
        ),
        format=FORMAT,
        classes=classes,
        preprocessing=vars(images),
        network=dict(tuned.frozen, whole=list(tuned.whole)),
        metrics={},
        sha256={TENSORS: sha256_of(data)},
    )
    try:
        text = json.dumps(configuration, indent=1, ensure_ascii=False)
    except TypeError as error:
        raise UserError(
            f'the arguments of the tuners cannot be written to a file: {error}. Give plain numbers, texts, '
            'lists and dicts.'
        ) from error

    def fill(temporary: Path) -> None:
        write_file(temporary / CONFIGURATION, text)
        write_file(temporary / TENSORS, data)

    publish_folder(folder, fill)


def require_same(wanted: Mapping[str, Any], given: Mapping[str, Any], folder: str) -> None:
    """DataError if the network is not the network that was tuned. The text says what differs."""
    if wanted['kind'] != given['kind']:
        raise DataError(
            f'{folder!r} was tuned on a {wanted["kind"]}, the network is a {given["kind"]}; give the network '
            'that was tuned.'
        )
    for what, advice in DIFFERENCES.items():
        ours, theirs = given[what], wanted[what]
        unequal = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
        if unequal:
            name = unequal[0]
            raise DataError(
                f'{folder!r} was tuned on another {wanted["kind"]}: {len(unequal)} of {len(theirs)} {what} '
                f'differ. The first is that of {name!r}: tuned {theirs.get(name, "without it")}, given '
                f'{ours.get(name, "without it")}. {advice}'
            )


def load_tensors(tuned: TunedNetwork, folder: Path, configuration: JsonObject) -> None:
    """Copies the tensors of a folder into a tuned network. DataError if they do not fit."""
    path, expected = folder / TENSORS, tuned.trained_state()
    state = read_tensors(
        path,
        AGAIN,
        tensors_sha256(configuration, folder),
        lambda header: require_fit(expected, header, str(path)),
    )
    load_into(expected, state, str(path))
