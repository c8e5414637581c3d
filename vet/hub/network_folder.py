"""The model folder of a user's own network: configuration.json and tuner.safetensors.

The folder describes the network that was tuned: its class, its tensors and the settings of its modules. So
`load` can refuse another network, and say what differs.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save

import vet
from vet.core.backbone import merged_error
from vet.core.description import differing_buffers, is_fingerprint
from vet.core.model import load_into, require_fit
from vet.core.permits import NOTHING, SHA256, Rule
from vet.core.preprocessing import Preprocessing
from vet.core.tensor_file import read_tensors, sha256_of
from vet.core.tuned_network import TunedNetwork
from vet.core.written_example import EXAMPLE, written
from vet.errors import DataError, UserError, shown
from vet.files import JsonObject, publish_folder, write_file
from vet.hub.model_folder import AGAIN, CONFIGURATION, FORMAT, TENSORS, tensors_sha256

# What is compared, in this order, and the advice if something differs
DIFFERENCES = dict(
    shapes='Build the network that was tuned.',
    settings='Build the network with the arguments that it had then.',
    values='Give the network the weights that it had then.',
)

_TEXT = Rule(lambda value: isinstance(value, str), 'a text')
_TEXTS = Rule(
    lambda value: isinstance(value, dict) and all(map(_TEXT.allows, value.values())),
    'a dict whose values are texts',
)
# What a folder says about the network
PARTS = dict(
    kind=_TEXT,
    sha256=SHA256,
    whole=Rule(lambda value: isinstance(value, list) and all(map(_TEXT.allows, value)), 'a list of names'),
    shapes=_TEXTS,
    settings=_TEXTS,
    values=_TEXTS,
    example=NOTHING | EXAMPLE,
    buffers=Rule(
        lambda value: isinstance(value, dict) and all(map(is_fingerprint, value.values())),
        'a dict whose values are a text and two numbers',
    ),
)


def save_network(
    tuned: TunedNetwork, folder: Path, classes: list[str], backbone: JsonObject, images: Preprocessing
) -> None:
    """Publishes the model folder of a tuned network by one rename.

    The tuners have one more entry for the buffers that the network's forward has changed.

    backbone: the entry of model.backbone.
    images: their preprocessing.
    """
    if tuned.is_merged:
        raise merged_error('saved')
    changed = tuned.changed_buffers()
    tuners = [tuner.entry() for tuner in tuned.tuners]
    state = tuned.trained_state()
    whole = [*tuned.whole, *changed]
    if changed:
        state |= {f'tuners.{len(tuners)}.thawed.{name}': value for name, value in changed.items()}
        tuners.append(dict(type='Partial', names=list(changed)))
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    values = {name: value for name, value in tuned.frozen['values'].items() if name not in changed}
    network = dict(tuned.frozen, values=values, whole=whole, example=written(tuned.example()))
    configuration = dict(
        framework='pytorch',
        task='vision-efficient-tuning',
        vet_version=vet.__version__,
        model=dict(backbone=dict(backbone, whole=whole), head=dict(type='Pretrained'), tuners=tuners),
        format=FORMAT,
        classes=classes,
        preprocessing=vars(images),
        network=network,
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


def described_network(configuration: JsonObject, folder: str) -> JsonObject | None:
    """The description of a user's network in a folder. None: the folder has none, because it is another kind.

    DataError if a part is missing, or is of another type.
    """
    described = configuration.get('network')
    if described is None:
        return None
    if not isinstance(described, dict):
        raise DataError(f'{folder!r} says network {shown(described)}; allowed: a dict. {AGAIN}')
    described = {'buffers': {}, 'example': None, **described}  # which older folders do not have
    for key, rule in PARTS.items():
        if not rule.allows(described.get(key)):
            raise DataError(
                f'{folder!r} says network.{key} {shown(described.get(key))}; allowed: {rule.text}. {AGAIN}'
            )
    return described


def require_same(wanted: JsonObject, given: JsonObject, folder: str) -> None:
    """DataError if the network is not the network that was tuned. The text says what differs."""
    if wanted['kind'] != given['kind']:
        raise DataError(
            f'{folder!r} was tuned on a {wanted["kind"]}, the network is a {given["kind"]}; give the network '
            'that was tuned.'
        )
    for what, advice in DIFFERENCES.items():
        ours, theirs = given[what], wanted[what]
        unequal = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
        if unequal and what == 'shapes' and _of_another_type(ours, theirs):
            raise DataError(
                f'{folder!r} was tuned on this architecture in another type of numbers: {unequal[0]!r} was '
                f'{theirs[unequal[0]]}, and is {ours[unequal[0]]}. Load first, and convert afterwards: '
                'vet.load(folder, network).to(torch.bfloat16).'
            )
        if unequal:
            name = unequal[0]
            raise DataError(
                f'{folder!r} was tuned on another {wanted["kind"]}: {len(unequal)} of {len(theirs)} {what} '
                f'differ. The first is that of {name!r}: tuned {theirs.get(name, "without it")}, given '
                f'{ours.get(name, "without it")}. {advice}'
            )
    if moved := differing_buffers(wanted['buffers'], given['buffers']):
        raise DataError(
            f'{folder!r} was tuned on another {wanted["kind"]}: {len(moved)} of its tensors that are not in '
            f'its state_dict differ. The first is {moved[0]!r}. Give the network the values that it had then.'
        )


def _of_another_type(ours: Mapping[str, str], theirs: Mapping[str, str]) -> bool:
    """Whether the shapes are equal, and only the types of numbers differ."""
    return {name: text.partition(' ')[2] for name, text in ours.items()} == {
        name: text.partition(' ')[2] for name, text in theirs.items()
    }


def load_tensors(tuned: TunedNetwork, folder: Path, configuration: JsonObject) -> None:
    """Copies the tensors of a folder into a tuned network. DataError if they do not fit."""
    path = folder / TENSORS
    expected = tuned.trained_state()
    state = read_tensors(
        path,
        AGAIN,
        tensors_sha256(configuration, folder),
        lambda header: require_fit(expected, header, str(path)),
    )
    load_into(expected, state, str(path))
