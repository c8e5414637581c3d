"""Reads and writes PEFT's folders: adapter_config.json and adapter_model.safetensors. The package `peft` is
not needed.

A tensor's name is 'base_model.model.' + the module's path + its name in the method. Reading and writing use
the same dict, from such names to views of the tuners' tensors. Reading fills the views, and writing saves the
views.
"""

import copy
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from vet.core.backbone import Backbone, FrozenNetwork, Preprocessing
from vet.core.budget import bounded
from vet.core.edits import Thaw
from vet.core.flow import around
from vet.core.model import ImageClassifier, load_into
from vet.core.reweight import Reweight
from vet.core.site_map import Layout
from vet.core.tensor_file import read_tensors
from vet.core.tuner import Tuner
from vet.errors import DataError, UserError
from vet.files import JsonObject, publish_folder, refuse_links, write_file
from vet.hub.peft_config import PLAIN, read_config, refuse_convolution, tuners_of
from vet.hub.peft_lora import OTHERWISE, AttentionUpdates, idle
from vet.hub.peft_methods import METHODS, TUNED_BY
from vet.hub.peft_terms import Config, Delta, Deltas, Tensors, paths_pattern
from vet.registry import BACKBONES, HEADS

CONFIG = 'adapter_config.json'
TENSORS = 'adapter_model.safetensors'
PREFIX = 'base_model.model.'
AGAIN = 'Copy the folder again, whole; adapters in .bin files are pickles, which are not read.'


def load_peft(
    folder: str | Path, backbone: str | Mapping[str, object] | nn.Module
) -> ImageClassifier | Backbone:
    """The backbone with the adapter of a folder that `peft` wrote, in eval mode.

    The adapter may be LoRA (DoRA, rsLoRA), IA3, LoHa, LoKr, HiRA, HRA, OFT, BOFT, FourierFT, C3A, RandLoRA,
        GLoRA or LN tuning.
    backbone: a timm name, whose pretrained weights are read; an entry of model.backbone, such as
        dict(type='timm', name=…, checkpoint=…); a module; or a Backbone. A module is copied, and not changed.
        The copy keeps its classifier if the adapter has none.
    If modules_to_save holds timm's classifier, the result is an ImageClassifier, whose classes are '0', '1',
    …. Otherwise the result is the tuned Backbone with its `tuners`, and gives the network's own output.
    DataError, with the file and the key, for a setting or tensor that does not fit or that vet does not read.
    Then nothing is loaded.
    """
    source = str(Path(folder) / CONFIG)
    path = Path(folder) / TENSORS
    refuse_links(Path(folder), (CONFIG, TENSORS))
    config = read_config(Path(folder) / CONFIG)
    given = read_tensors(path, AGAIN)
    base, classifier = _backbone(backbone, given)
    try:
        with bounded(repr(source)):
            return _tuned(config, given, base, classifier, source, path).eval()
    except DataError:
        raise
    except UserError as error:
        raise DataError(f'{source!r} cannot be put on {base.sites.family}: {error}') from error


def _tuned(
    config: Config, given: Tensors, base: Backbone, classifier: str | None, source: str, path: Path
) -> Any:
    """The backbone, or its classifier, with the adapter's tuners and tensors."""
    tuners, layers = tuners_of(config, base.network, source)
    tuned: ImageClassifier | Backbone = base
    if classifier:
        count = len(given[f'{PREFIX}{classifier}.weight'])
        head = HEADS.build(dict(type='Linear'), in_features=base.num_features, num_classes=count)
        tuned = ImageClassifier(
            base, tuners, head.to(next(base.parameters()).device), [str(label) for label in range(count)]
        )
    else:
        base.tuners = nn.ModuleList(tuners)
        for tuner in tuners:
            tuner.attach(base)
    with torch.no_grad():
        _, deltas, thawed = _trained(tuners, base.network)
        views = _tensors(config['peft_type'], deltas, thawed, layers, base.network)
        if isinstance(tuned, ImageClassifier):
            views |= {
                f'{PREFIX}{classifier}.{name}': tuned.head.get_parameter(f'fc.{name}')
                for name in ('weight', 'bias')
            }
        without_effect = tuple(f'{PREFIX}{module}.lora_' for module in idle(base.network))
        given = {name: value for name, value in given.items() if not name.startswith(without_effect)}
        load_into(views, _without_fixed(given, config['peft_type'], deltas, path), f'{str(path)!r}')
    return tuned


def _without_fixed(given: Tensors, method: str, deltas: Deltas, path: Path) -> Tensors:
    """The tensors of a file without those that vet makes itself. DataError if such a tensor is another."""
    fixed = METHODS[method].fixed(next(iter(deltas.values()))) if deltas else {}
    left = {}
    for name, value in given.items():
        made = fixed.get(name.rpartition('.')[2])
        if made is None:
            left[name] = value
        elif made.dim() and made.shape != value.shape or not torch.allclose(value.to(made), made, atol=1e-5):
            raise DataError(f'{str(path)!r} has another {name!r} than vet makes, so that it cannot be read.')
    return left


def save_peft(model: ImageClassifier | FrozenNetwork, folder: str | Path) -> None:
    """Writes the folder that `PeftModel.from_pretrained(network, folder)` reads.

    network: timm's network of the same weights.
    model: a classifier, a result of `load_peft`, or a result of `vet.tune`. The model has at most one tuner
        of LoRA (parts of a fused qkv as one update of more rank), AdaLoRA (as LoRA), LoHa, LoKr, IA3, HiRA,
        HRA, OFT, BOFT, FourierFT, C3A, RandLoRA and GLoRA.
    Modules that train whole, and the linear head, become modules_to_save. If the model has only modules that
    train whole, the method is LN tuning. UserError, by name, for a method that PEFT does not have. Then
    nothing is written.
    """
    if not isinstance(model, (ImageClassifier, FrozenNetwork)) or not hasattr(model, 'tuners'):
        raise UserError(
            'save_peft takes an ImageClassifier, or the result of vet.tune or load_peft; given: '
            f'{type(model).__name__}. If the model has several tasks, give model.for_task(…).'
        )
    strangers = sorted(path.name for path in Path(folder).glob('*') if path.name not in (CONFIG, TENSORS))
    if strangers:
        raise UserError(
            f'{str(folder)!r} holds {strangers[0]!r}, which is no file of an adapter; give a new folder.'
        )
    tuners: Any = model.tuners
    network = model.backbone.network if isinstance(model, ImageClassifier) else model.network
    head = _head(model) if isinstance(model, ImageClassifier) else {}
    with torch.no_grad():
        name, deltas, thawed = _trained(tuners, network)
        whole = _whole_modules(thawed, network)
        layers = whole if name == 'LN_TUNING' else []
        saved = sorted({key.rpartition('.')[0] for key in head} | set(whole) - set(layers))
        targets = layers or list(deltas)
        if not targets:
            raise UserError(
                'no part of the backbone was trained, and a folder of PEFT cannot hold only a head; '
                'use save_pretrained.'
            )
        _refuse_ambiguous(saved, network)
        config = dict(
            peft_type=name,
            task_type=None,
            base_model_name_or_path=None,
            inference_mode=True,
            modules_to_save=saved or None,
            target_modules=paths_pattern(targets),
            **METHODS[name].config(deltas, list(tuners)),
        )
        tensors = _tensors(name, deltas, thawed, layers, network) | {
            PREFIX + key: value for key, value in head.items()
        }
        config |= _ranks(name, deltas, network)
        _warn_of_fast_path(targets, network)
        data = save(
            {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()},
            metadata=dict(format='pt'),
        )

    def fill(temporary: Path) -> None:
        write_file(temporary / CONFIG, json.dumps(config, indent=2, sort_keys=True))
        write_file(temporary / TENSORS, data)

    publish_folder(Path(folder), fill)


# The trained parts, in PEFT's words -------------------------------------------------------------------------


def _trained(tuners: Iterable[Tuner], network: nn.Module) -> tuple[str, Deltas, Tensors]:
    """The name of the method, {module path: delta} and {parameter path: value} of the tuners' edits."""
    paths = {id(module): path for path, module in network.named_modules()}
    methods = set()
    deltas: dict[str, Delta] = {}
    thawed = {}
    for tuner in tuners:
        kind = type(tuner).__name__
        for edit in tuner._edits:
            if isinstance(edit, Thaw):
                thawed[edit.key] = edit.value
            elif isinstance(edit, Reweight) and kind in TUNED_BY:
                _put(deltas, edit, paths[id(edit.host)], kind)
                methods.add(TUNED_BY[kind])
            else:
                raise UserError(
                    f'{kind} cannot be written for PEFT; allowed: {", ".join(TUNED_BY)}, and modules that '
                    'train whole.'
                )
    if len(methods) > 1:
        raise UserError(
            f'the tuners are {" and ".join(sorted(methods))}, but a folder of PEFT holds one method.'
        )
    return (methods or {'LN_TUNING'}).pop(), deltas, thawed


def _put(deltas: dict[str, Delta], edit: Reweight, path: str, kind: str) -> None:
    """Puts the delta of an edit into `deltas`. UserError if PEFT has no such update."""
    if isinstance(edit.host, nn.MultiheadAttention) and TUNED_BY[kind] == 'LORA':
        if path not in deltas:
            deltas[path] = AttentionUpdates(path, edit.host)
        deltas[path].put(edit.weight_name, edit.delta)
        return
    if type(edit.host) not in PLAIN or edit.weight_name != 'weight' or path in deltas:
        wrong = 'the second there' if path in deltas else f'in a {type(edit.host).__name__}'
        raise UserError(
            f'{kind} at {path!r} is {wrong}, which cannot be written for PEFT: it has one update of a Linear '
            f'or Conv2d that is called, or LoRA of an nn.MultiheadAttention. {OTHERWISE}'
        )
    refuse_convolution(edit.host, path, TUNED_BY[kind])
    deltas[path] = edit.delta


def _weight(network: nn.Module, path: str) -> torch.Tensor:
    """The weight of a module. nn.MultiheadAttention: that of queries, keys and values."""
    module = network.get_submodule(path)
    return module.get_parameter('in_proj_weight' if isinstance(module, nn.MultiheadAttention) else 'weight')


def _tensors(
    method: str, deltas: Deltas, thawed: Tensors, layers: Iterable[str], network: nn.Module
) -> Tensors:
    """All tensors except the head's, under PEFT's names.

    layers: the modules of LN tuning. PEFT gives their tensors names of another form.
    """
    tensors = {
        f'{PREFIX}{path}.{name}': value
        for path, delta in deltas.items()
        for name, value in METHODS[method].tensors(delta, _weight(network, path)).items()
    }
    for key, value in thawed.items():
        layer = next((f'{layer}.' for layer in layers if key.startswith(f'{layer}.')), '')
        tensors[PREFIX + (f'{layer}ln_tuning_layers.' if layer else '') + key[len(layer) :]] = value
    return tensors


# Reading ----------------------------------------------------------------------------------------------------


def _backbone(given: str | Mapping[str, object] | nn.Module, tensors: Tensors) -> tuple[Backbone, str | None]:
    """A backbone that the caller may change, and the path of the classifier that the adapter holds.

    The network has lost this classifier. None: the adapter holds no classifier.
    """
    if isinstance(given, (str, Mapping)):
        backbone = BACKBONES.build(dict(type='timm', name=given) if isinstance(given, str) else dict(given))
    elif isinstance(given, nn.Module):
        backbone = (
            copy.deepcopy(given)
            if isinstance(given, Backbone)
            else _wrapped(copy.deepcopy(given).eval(), tensors)
        )
    else:
        raise UserError(
            f'backbone is {given!r}; allowed: a timm name, an entry of model.backbone, a module or a '
            'Backbone.'
        )
    path = _saved_classifier(backbone.network, tensors)
    return backbone, path if path and isinstance(backbone.network.get_submodule(path), nn.Identity) else None


def _wrapped(network: nn.Module, tensors: Tensors) -> Backbone:
    import timm  # imported here, because the import takes seconds

    path = _saved_classifier(network, tensors)
    settings = timm.data.resolve_model_data_config(network)
    if path:
        network.set_submodule(path, nn.Identity())
    stated = (
        (getattr(network, 'patch_embed', None), 'img_size'),
        (getattr(network, 'config', None), 'image_size'),
        (network, 'image_size'),
        (getattr(network, 'visual', None), 'image_size'),
    )
    sizes = [size for owner, name in stated if (size := getattr(owner, name, None))]
    size = (sizes or [settings['input_size'][1:]])[0]
    return Backbone(
        network,
        Layout(),
        Preprocessing(
            (size, size) if isinstance(size, int) else tuple(size),
            settings['mean'],
            settings['std'],
            settings['crop_pct'],
            settings['interpolation'],
        ),
        dict(type='module', name=type(network).__name__),
    )


def _saved_classifier(network: nn.Module, tensors: Tensors) -> str | None:
    """The path of timm's classifier, if the adapter has the classifier."""
    path = _classifier(network)
    return path if path and tensors.get(f'{PREFIX}{path}.weight', torch.empty(0)).dim() == 2 else None


def _classifier(network: nn.Module) -> str | None:
    """The path of timm's classifier, if the network has exactly one."""
    path = (getattr(network, 'pretrained_cfg', None) or {}).get('classifier')
    return path if isinstance(path, str) else None


# Writing ----------------------------------------------------------------------------------------------------


def _head(model: ImageClassifier) -> Tensors:
    """The linear head's tensors under their names in timm's network. Empty for a head that adds nothing."""
    state = model.head.state_dict()
    path = _classifier(model.backbone.network)
    if not state:
        return {}
    if set(state) != {'fc.weight', 'fc.bias'}:
        raise UserError(
            f'the head {HEADS.called(model.head)!r} cannot be written for PEFT, which saves the classifier '
            'of the network, a Linear.'
        )
    if path is None:
        raise UserError(
            f'{type(model.backbone.network).__name__} does not say where its one classifier is, as timm does.'
        )
    return {f'{path}.{name.removeprefix("fc.")}': value for name, value in state.items()}


def _whole_modules(thawed: Tensors, network: nn.Module) -> list[str]:
    """The modules of the thawed tensors, none within another. UserError if a module is not thawed whole."""
    owners = {key.rpartition('.')[0]: key for key in thawed}
    for path, key in owners.items():
        left = [
            name for name in network.get_submodule(path).state_dict(prefix=f'{path}.') if name not in thawed
        ]
        if left or not path:
            raise UserError(
                f'{key!r} was trained without {left[0]!r}, but PEFT saves modules whole.'
                if path
                else f'{key!r} was trained, which is of no module within the network, and PEFT saves modules.'
            )
    return [path for path in owners if owners.keys().isdisjoint(around(path))]


def _warn_of_fast_path(targets: Iterable[str], network: nn.Module) -> None:
    """Warns if PEFT changes layers within an nn.TransformerEncoderLayer, which reads their frozen weights."""
    for path in targets:
        if any(
            isinstance(network.get_submodule(outer), nn.TransformerEncoderLayer) for outer in around(path)
        ):
            warnings.warn(
                f'{path!r} is in an nn.TransformerEncoderLayer. In eval mode, PEFT does not compute the '
                'update there, unless you call torch.backends.mha.set_fastpath_enabled(False).',
                stacklevel=3,
            )
            return


def _refuse_ambiguous(saved: list[str], network: nn.Module) -> None:
    for path, module in network.named_modules():
        name = next((name for name in saved if path.endswith(name) and path not in saved), None)
        if name and module.state_dict():
            raise UserError(
                f'modules_to_save = [{name!r}] would name {path!r} to PEFT too, which takes it for the end '
                'of a path.'
            )


def _ranks(method: str, deltas: Deltas, network: nn.Module) -> JsonObject:
    """The most frequent rank and alpha.

    Other ranks and alphas are given by pattern. The scale is alpha / rank.
    """
    by_path = {}
    kind = METHODS[method]
    if not kind.rank:
        return {}
    for path, delta in deltas.items():
        rank = kind.rank(delta, _weight(network, path))
        by_path[path] = rank, delta.scale * rank
    (rank, alpha), _ = Counter(by_path.values()).most_common(1)[0]
    return {
        'r': rank,
        kind.alpha: alpha,
        'rank_pattern': {f'^{re.escape(path)}': r for path, (r, _) in by_path.items() if r != rank},
        'alpha_pattern': {f'^{re.escape(path)}': a for path, (_, a) in by_path.items() if a != alpha},
    }
