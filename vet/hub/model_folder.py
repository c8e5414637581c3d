"""The model folder: configuration.json and tuner.safetensors. With the backbone's weights, they are the whole
model.

vet reads the files with json and safetensors. Nothing in a model folder is executed.
"""

import inspect
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

import vet
from vet.core.assemble import build_classifiers
from vet.core.backbone import Backbone, weights_sha256
from vet.core.budget import bounded, rehearse
from vet.core.head import saved_entry
from vet.core.meanings import of_today
from vet.core.model import require_fit
from vet.core.multitask import Classifier
from vet.core.objective import DEFAULT, build_objective
from vet.core.tensor_file import read_tensors, require_regular, sha256_of
from vet.core.tuned_model import TunedModel, with_same_weights
from vet.errors import DataError, NetworkNeededError, UserError, shown
from vet.files import JsonObject, publish_folder, refuse_links, write_file
from vet.hub.contents import require_harmless, require_texts
from vet.hub.file_names import CONFIGURATION, FOLDERS, LARGEST_JSON, TENSORS
from vet.registry import BACKBONES, Entry
from vet.versions import is_newer

AGAIN = 'Copy the model folder again, whole.'
# of the configuration. Format 2 has the sha256 of tensor files. Format 3 has today's meaning of the entries
# in core/meanings.py. Without a format: 1
FORMAT = 3
OLD_MEANING = 2  # the last format with the older entries
# keys that make mmengine's Config run code, or read other files
REFUSED = ('_base_', 'custom_imports', 'env_variables')
IDENTITY = ('tag', 'sha256')  # of a backbone: keys that identify the weights, and do not build the network
# keys that say where weights and settings come from; they do not change the network
HINTS = ('pretrained', 'checkpoint', 'weights', 'preprocessing')


def save_model(model: Classifier, folder: Path, facts: JsonObject) -> None:
    """Publishes the model folder by one rename.

    facts: 'settings' (the config of the run; the folder keeps its entries of tuners and head) and 'metrics'
        (measured on the test split).
    """
    settings = facts['settings']
    parts = {
        task: dict(
            backbone=_located(classifier.backbone.identity),
            head=saved_entry(
                classifier.head,
                (settings['model']['tasks'].get(task) or {}).get('head', settings['model']['head']),
            ),
            # older vets read folders of one class for each image
            **({'objective': entry} if (entry := classifier.objective.entry()) != DEFAULT else {}),
        )
        for task, classifier in model.tasks.items()
    }
    preprocessing = {
        task: vars(classifier.backbone.preprocessing) for task, classifier in model.tasks.items()
    }
    described = {task: classifier.backbone.described for task, classifier in model.tasks.items()}.get(None)
    several = dict(tasks=parts, shared=settings['model']['shared']) if None not in parts else {}
    configuration = dict(
        framework='pytorch',
        task='vision-efficient-tuning',
        vet_version=vet.__version__,
        model=dict(**next(iter(parts.values())), tuners=settings['model']['tuners'], **several),
        format=FORMAT,
        classes=model.classes,
        preprocessing=preprocessing.get(None, preprocessing),
        **{section: settings[section] for section in ('dataset', 'train', 'evaluation', 'seed')},
        metrics=dict(facts['metrics']),
        **(dict(network=described) if described else {}),
    )
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in model.trained_state().items()})
    configuration['sha256'] = {TENSORS: sha256_of(data)}

    def fill(temporary: Path) -> None:
        write_file(temporary / CONFIGURATION, json.dumps(configuration, indent=1, ensure_ascii=False))
        write_file(temporary / TENSORS, data)

    publish_folder(folder, fill)


def read_json(path: Path, advice: str = FOLDERS) -> Any:
    """The value of a folder's JSON file.

    DataError if the file cannot be read, or asks for more than reading.
    """
    try:
        require_regular(path)
        if path.stat().st_size > LARGEST_JSON:
            raise DataError(f'{str(path)!r} takes {path.stat().st_size:,} bytes; allowed: {LARGEST_JSON:,}.')
        value = json.loads(path.read_bytes())
    except DataError:
        raise
    except OSError as error:
        raise DataError(
            f'{str(path.parent)!r} is no model folder: {path.name} cannot be read ({error.strerror}). '
            f'{advice}'
        ) from error
    except RecursionError as error:
        raise DataError(f'{str(path)!r} is nested too deep for a model folder.') from error
    except ValueError as error:
        raise DataError(f'{str(path)!r} is not valid JSON: {error}.') from error
    require_texts(value, repr(str(path)))
    refused = [key for key in REFUSED if isinstance(value, dict) and key in value]
    if refused:
        raise DataError(
            f'{str(path)!r} asks for {refused[0]!r}, which could run code; a model folder holds data only.'
        )
    return value


def read_configuration(folder: str | Path) -> JsonObject:
    """The configuration of a model folder.

    DataError if there is none, or if it asks for more than reading.
    """
    path = Path(folder) / CONFIGURATION
    refuse_links(Path(folder), (CONFIGURATION, TENSORS))
    configuration = read_json(path)
    try:
        backbone = configuration['model']['backbone']
        head = configuration['model']['head']
        assert (
            isinstance(backbone, dict)
            and isinstance(head, dict)
            and isinstance(configuration['model']['tuners'], list)
        )
        assert isinstance(configuration['classes'], dict if configuration['model'].get('tasks') else list)
    except (KeyError, TypeError, AssertionError, AttributeError) as error:
        raise DataError(
            f'{str(path)!r} is not the configuration of a vet model: model.backbone, model.tuners, '
            f'model.head and classes are needed.{note_if_newer(configuration)}'
        ) from error
    given = configuration.get('format', 1)
    if type(given) is not int or not 1 <= given <= FORMAT:
        raise DataError(
            f'{str(path)!r} is of format {shown(given)}; this vet ({vet.__version__}) reads formats 1 to '
            f'{FORMAT}. If a newer vet wrote the folder ({shown(configuration.get("vet_version"))}), update '
            'vet.'
        )
    try:
        require_harmless(configuration, repr(str(path)))
    except UserError as error:
        raise DataError(f'{error}{note_if_newer(configuration)}') from error
    if given <= OLD_MEANING:
        configuration['model']['tuners'] = [of_today(entry) for entry in configuration['model']['tuners']]
    return configuration


def note_if_newer(configuration: object) -> str:
    """A sentence for an error about a folder that a newer vet wrote. '' for other folders."""
    written = configuration.get('vet_version') if isinstance(configuration, dict) else None
    if not is_newer(written):
        return ''
    return (
        f' The folder was written by vet {written}, which is newer than this vet {vet.__version__}: '
        'update vet.'
    )


def load_model(
    folder: str | Path, backbone: str | Path | Backbone | Mapping[str, str | Path | Backbone] | None = None
) -> Classifier:
    """The classifier of a model folder, in eval mode on the CPU.

    backbone: where the backbone's weights are now, if not where the folder says; or a backbone, whose weights
        the model then shares; for several tasks, {task: one of these}.
    The sha256 decides whether the weights are those that were tuned. Other weights are refused. Images are
    prepared as the folder says, even if the library's settings have changed.
    """
    configuration = read_configuration(folder)
    path = Path(folder) / TENSORS
    if newer := note_if_newer(configuration):
        warnings.warn(
            f'{str(folder)!r} opens, but may have settings that this vet does not know.{newer}', stacklevel=2
        )
    model = configuration['model']
    classes = configuration['classes']
    preprocessing = configuration.get('preprocessing') or {}
    if not model.get('tasks'):
        model = dict(model, tasks={None: model})
        classes = {None: classes}
        preprocessing = {None: preprocessing}
    parts = {}
    for task, entry in model['tasks'].items():
        given = backbone.get(task) if isinstance(backbone, Mapping) else backbone
        network = load_backbone(entry['backbone'], given)
        seen = network.preprocessing
        network.preprocessing = network.preprocessing.with_changes(preprocessing.get(task) or {})
        if network.preprocessing.size != seen.size:
            _require_size(network, seen.size, str(folder))
        # the sites of a given backbone were found for images of one size
        if isinstance(given, Backbone) and network.preprocessing.size != seen.size:
            raise DataError(
                f'{str(folder)!r} takes images of {network.preprocessing.size} (height, width), but the '
                f'backbone that shares its weights takes images of {seen.size}. Only models of one size can '
                'share a backbone.'
            )
        objective = build_objective(entry.get('objective'), classes[task])
        parts[task] = network, entry['head'], classes[task], objective
    with bounded(repr(str(folder)), note_if_newer(configuration)):
        made = build_classifiers(parts, model['tuners'], model.get('shared', '.*'))
    expected = made.trained_state()
    state = read_tensors(
        path,
        AGAIN,
        tensors_sha256(configuration, folder),
        lambda header: require_fit(expected, header, str(path)),
    )
    made.load_trained_state(state, str(path))
    made.eval()
    # whole numbers are indices, for example, and may point outside
    if not all(tensor.is_floating_point() for tensor in state.values()):
        with bounded(repr(str(folder)), note_if_newer(configuration)):
            _try(made)
    return made


def _require_size(backbone: Backbone, seen: tuple[int, int], folder: str) -> None:
    """DataError if the network does not take images of the folder's size. `seen` is the size before."""
    size = backbone.preprocessing.size
    with (
        bounded(f'{folder!r} says images of {size} (height, width), the network takes {seen}: its network'),
        torch.no_grad(),
    ):
        image = torch.zeros(1, 3, *size)
        rehearse(backbone.network, image)
        backbone.network.eval()(image)


@torch.no_grad()
def _try(model: Classifier) -> None:
    """Computes the scores of one image, so that a wrong number raises its error here."""
    for classifier in model.tasks.values():
        classifier(
            torch.zeros(
                1, 3, *classifier.backbone.preprocessing.size, device=next(classifier.parameters()).device
            )
        )


def tensors_sha256(configuration: JsonObject, folder: str | Path) -> str | None:
    """The sha256 that tuner.safetensors must have. None, with a warning, for a folder of format 1."""
    sha256 = (configuration.get('sha256') or {}).get(TENSORS)
    if sha256 is None and configuration.get('format', 1) > 1:
        raise DataError(f'{str(Path(folder) / CONFIGURATION)!r} lacks the sha256 of {TENSORS}. {AGAIN}')
    if sha256 is None:
        warnings.warn(
            f'{str(folder)!r} was saved by an older vet, which kept no checksum: a damaged number in '
            f'{TENSORS} is not noticed. `vet combine NEW_FOLDER FOLDER` writes the folder again, with a '
            'checksum.',
            stacklevel=3,
        )
    return sha256


def load_models(folders: Mapping[str, str | Path], backbone: str | Path | None = None) -> TunedModel:
    """The models of several folders, by the caller's names, on one frozen backbone. See TunedModel.

    All folders must have been tuned on this backbone.
    """
    if isinstance(backbone, Mapping):
        raise UserError(
            f'backbone is {dict(backbone)!r}, but several folders share one backbone; give one path.'
        )
    shared = None
    models = dict[str, Any]()
    for name, folder in folders.items():
        model = read_configuration(folder)['model']
        if model.get('tasks'):
            raise UserError(
                f'{str(folder)!r} is a model of several tasks; a list of folders can hold only models of one '
                'task.'
            )
        shared = shared or load_backbone(model['backbone'], backbone)
        models[name] = load_model(folder, shared)
    if shared is None:
        raise UserError('no folder is given; give {name: folder, …}.')
    return TunedModel(shared, models)


def _reads_weights(kind: str) -> bool:
    arguments = inspect.signature(BACKBONES.find(kind)).parameters.values()
    return any(each.name == 'checkpoint' or each.kind is each.VAR_KEYWORD for each in arguments)


def load_backbone(identity: Mapping[str, object], given: str | Path | Backbone | None = None) -> Backbone:
    """The backbone that `identity` names. DataError if its weights are not the named weights.

    given: where the weights are now; or a backbone, which is copied with shared weights.
    """
    plugin = {key: value for key, value in identity.items() if key not in IDENTITY}
    if isinstance(given, Backbone):
        if architecture(identity) != architecture(given.identity):
            raise DataError(
                f'the backbone that was tuned is {architecture(identity)}, but the backbone that shares its '
                f'weights is {architecture(given.identity)}. Only models of one backbone can share weights.'
            )
        backbone = with_same_weights(given)
    else:
        if given is not None and not _reads_weights(str(identity['type'])):
            raise UserError(
                f'backbone is {str(given)!r}, but the backbone {identity["type"]} reads no file of weights: '
                'leave backbone out (of a command: --backbone).'
            )
        try:
            with bounded(f'the backbone {shown(identity.get("name", identity["type"]))}'):
                backbone = BACKBONES.build(plugin if given is None else dict(plugin, checkpoint=str(given)))
        except NetworkNeededError:
            raise
        except DataError as error:
            raise DataError(
                f'{error} (For a model folder: pipeline(…, backbone=PATH) or --backbone PATH.)'
            ) from error
    wanted = identity.get('sha256')
    if wanted != backbone.identity['sha256'] and not (
        # older folders have the sha256 of resampled weights
        backbone.is_resampled and wanted == weights_sha256(backbone.network.state_dict())
    ):
        older = backbone.is_resampled * (
            ' (A folder of an older vet says the sha256 of resampled positions, which differs between '
            'processors: train or combine the folder again on the kind of processor that made it.)'
        )
        raise DataError(
            f'these are not the backbone weights that were tuned: {identity.get("name", identity["type"])} '
            f'with sha256 {wanted} is needed, given {backbone.identity["sha256"]}. Give the right file as '
            f'backbone=PATH.{older}'
        )
    return backbone


def architecture(identity: Mapping[str, object]) -> JsonObject:
    """The settings of a backbone that decide its network, without its weights."""
    named = {key: value for key, value in identity.items() if key not in (*HINTS, *IDENTITY)}
    return json.loads(json.dumps(named | dict(name=str(identity.get('name')).partition('.')[0])))


def _located(identity: Entry) -> JsonObject:
    """The identity with an absolute path of its checkpoint."""
    checkpoint = identity.get('checkpoint')
    return dict(
        identity, **({'checkpoint': str(Path(checkpoint).expanduser().absolute())} if checkpoint else {})
    )
