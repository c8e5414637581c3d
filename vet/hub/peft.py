"""Reads and writes PEFT's folders: adapter_config.json and adapter_model.safetensors. The package `peft` is
not needed.

A tensor's name is 'base_model.model.' + the module's path + its name in the method. Both ways use one dict,
from such names to views of the tuners' tensors. Reading fills the views, writing saves them.
"""

import copy
import json
import re
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
from vet.core.permits import ENTRIES, LARGEST, walk
from vet.core.reweight import Reweight
from vet.core.site_map import Layout
from vet.core.tensor_file import read_tensors
from vet.core.tuner import Tuner
from vet.errors import DataError, UnknownNameError, UserError, shown
from vet.files import JsonObject, publish_folder, refuse_links, write_file
from vet.hub.model_folder import read_json
from vet.hub.peft_methods import METHODS, TUNED_BY, Config, Deltas, Tensors, build_thaw, paths_pattern
from vet.patterns import fits, fits_start, require_pattern
from vet.registry import BACKBONES, HEADS

CONFIG = 'adapter_config.json'
TENSORS = 'adapter_model.safetensors'
PREFIX = 'base_model.model.'
AGAIN = 'Copy the folder again, whole; adapters in .bin files are pickles, which are not read.'
PATTERNS = ('r', 'alpha', 'lora_alpha', 'rank_pattern', 'alpha_pattern')
READ = ('peft_type', 'target_modules', 'exclude_modules', 'modules_to_save')
NO_EFFECT = (  # settings without effect in eval mode; settings that are in no list must be empty
    'task_type',
    'auto_mapping',
    'peft_version',
    'base_model_name_or_path',
    'revision',
    'inference_mode',
    'rank_dropout',
    'module_dropout',
    'rank_dropout_scale',
    'init_weights',
    'init_ia3_weights',
    'eva_config',
    'fan_in_fan_out',
    'megatron_core',
    'loftq_config',
    'qalora_group_size',
    'runtime_config',
    'ensure_weight_tying',
    'lora_dropout',
)
# other values change the base weights
ONLY: dict[str, tuple] = dict(bias=('none',), init_lora_weights=(True, False, 'gaussian', 'eva'))
KINDS: dict[str, tuple[type, ...]] = dict(
    r=(int,),
    alpha=(int, float),
    lora_alpha=(int, float),
    target_modules=(str, list),
    exclude_modules=(str, list),
    feedforward_modules=(str, list),
    modules_to_save=(list,),
    rank_pattern=(dict,),
    alpha_pattern=(dict,),
)
PLAIN = (nn.Linear, nn.Conv2d)


def load_peft(
    folder: str | Path, backbone: str | Mapping[str, object] | nn.Module
) -> ImageClassifier | Backbone:
    """The backbone with the adapter of a folder that `peft` wrote, in eval mode.

    The adapter may be LoRA (DoRA, rsLoRA), IA3, LoHa, LoKr or LN tuning.
    backbone: a timm name, whose pretrained weights are read; an entry of model.backbone, such as
        dict(type='timm', name=…, checkpoint=…); a module; or a Backbone. A module is copied, and not changed.
        The copy keeps its classifier if the adapter has none.
    If modules_to_save holds timm's classifier, the result is an ImageClassifier, whose classes are '0', '1',
    …. Otherwise the result is the tuned Backbone with its `tuners`, and gives the network's own output.
    DataError, with the file and the key, for a setting or tensor that does not fit or that vet does not read.
    Then nothing is loaded.
    """
    source, path = str(Path(folder) / CONFIG), Path(folder) / TENSORS
    refuse_links(Path(folder), (CONFIG, TENSORS))
    config, given = _read_config(Path(folder) / CONFIG), read_tensors(path, AGAIN)
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
    tuners, layers = _tuners(config, base.network, source)
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
        load_into(views, given, f'{str(path)!r}')
    return tuned


def save_peft(model: ImageClassifier | FrozenNetwork, folder: str | Path) -> None:
    """Writes the folder that `PeftModel.from_pretrained(network, folder)` reads.

    network: timm's network of the same weights.
    model: a classifier, a result of `load_peft`, or a result of `vet.tune`. It holds at most one of LoRA
        (plain, rslora, dora, parts of a fused qkv as one update of more rank), LoHa, LoKr and IA3.
    Modules that train whole, and the linear head, become modules_to_save. If the model has only modules that
    train whole, the method is LN tuning. UserError, by name, for a method that PEFT does not have. Then
    nothing is written.
    """
    if not isinstance(model, (ImageClassifier, FrozenNetwork)) or not hasattr(model, 'tuners'):
        raise UserError(
            'save_peft takes an ImageClassifier, or what vet.tune or load_peft gave; given: '
            f'{type(model).__name__}. Of a model of several tasks, give model.for_task(…).'
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
                'nothing of the backbone was trained, and PEFT has no folder of a head alone; '
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
    deltas = {}
    thawed = {}
    for tuner in tuners:
        kind = type(tuner).__name__
        for edit in tuner._edits:
            if isinstance(edit, Thaw):
                thawed[edit.key] = edit.value
            elif isinstance(edit, Reweight) and kind in TUNED_BY:
                path = paths[id(edit.host)]
                if type(edit.host) not in PLAIN or edit.weight_name != 'weight' or path in deltas:
                    wrong = 'the second there' if path in deltas else f'in a {type(edit.host).__name__}'
                    raise UserError(
                        f'{kind} at {path!r} is {wrong}, which cannot be written for PEFT: it has one update '
                        'of a Linear or Conv2d that is called.'
                    )
                _refuse_convolution(edit.host, path, TUNED_BY[kind])
                deltas[path] = edit.delta
                methods.add(TUNED_BY[kind])
            else:
                raise UserError(
                    f'{kind} cannot be written for PEFT; allowed: LoRA, LoHa, LoKr, IA3, and modules that '
                    'train whole.'
                )
    if len(methods) > 1:
        raise UserError(
            f'the tuners are {" and ".join(sorted(methods))}, but a folder of PEFT holds one method.'
        )
    return (methods or {'LN_TUNING'}).pop(), deltas, thawed


def _refuse_convolution(module: nn.Module, path: str, method: str) -> None:
    """Refuses convolutions for which PEFT computes another operation.

    PEFT's A takes all channels, without dilation. PEFT pads updates with zeros.
    """
    if isinstance(module, nn.Conv2d) and (
        module.padding_mode != 'zeros'
        or method == 'LORA'
        and (module.groups != 1 or set(module.dilation) != {1})
    ):
        raise UserError(
            f"{path!r} is {module}; PEFT's {method} of such a convolution is not an update of its weight."
        )


def _tensors(
    method: str, deltas: Deltas, thawed: Tensors, layers: Iterable[str], network: nn.Module
) -> Tensors:
    """All tensors except the head's, under PEFT's names.

    layers: the modules of LN tuning. PEFT gives their tensors names of another form.
    """
    tensors = {
        f'{PREFIX}{path}.{name}': value
        for path, delta in deltas.items()
        for name, value in METHODS[method].tensors(delta, network.get_parameter(f'{path}.weight')).items()
    }
    for key, value in thawed.items():
        layer = next((f'{layer}.' for layer in layers if key.startswith(f'{layer}.')), '')
        tensors[PREFIX + (f'{layer}ln_tuning_layers.' if layer else '') + key[len(layer) :]] = value
    return tensors


# Reading ----------------------------------------------------------------------------------------------------


def _read_config(path: Path) -> JsonObject:
    config = read_json(path, 'Give the folder that save_pretrained of peft wrote.')
    if not isinstance(config, dict) or 'peft_type' not in config:
        raise DataError(f'{str(path)!r} is not the configuration of a PEFT adapter: peft_type is needed.')
    if config['peft_type'] not in list(METHODS):
        raise UnknownNameError(f'peft_type in {str(path)!r}', config['peft_type'], METHODS)
    method = METHODS[config['peft_type']]
    known = (*READ, *NO_EFFECT, *method.reads, *(PATTERNS if method.rank else ()))
    for key, value in config.items():
        if key in ONLY and value not in ONLY[key]:
            raise DataError(
                f'{str(path)!r} has {key} = {value!r}; of those, vet reads {", ".join(map(repr, ONLY[key]))}.'
            )
        if (
            key not in known
            and key not in ONLY
            and not (value is None or value is False or value in ('', [], {}))
        ):
            raise DataError(
                f'{str(path)!r} has {key} = {value!r}, a setting that vet does not read for '
                f'{config["peft_type"]}.'
            )
        if (
            value is not None
            and key in KINDS
            and (not isinstance(value, KINDS[key]) or isinstance(value, bool))
        ):
            raise DataError(f'{str(path)!r} has {key} = {value!r}, of the wrong kind.')
    for key in (
        'target_modules',
        'exclude_modules',
        'feedforward_modules',
        'modules_to_save',
        'rank_pattern',
        'alpha_pattern',
    ):
        _require_patterns(config.get(key), f'{str(path)!r} has a {key} that')
    for _, value in walk(config, ''):
        if isinstance(value, int | float) and not abs(value) <= LARGEST:
            raise DataError(
                f'{str(path)!r} has the number {shown(value)}; allowed: -{LARGEST:,} to {LARGEST:,}.'
            )
    return config


def _require_patterns(given: Any, where: str) -> None:
    """DataError if `given` is no pattern, no list of patterns, and no dict from patterns to numbers."""
    patterns = [given] if isinstance(given, str) else list(given or ())
    if len(patterns) > ENTRIES or (
        isinstance(given, dict) and not all(type(value) in (int, float) for value in given.values())
    ):
        raise DataError(
            f'{where} is {shown(given)}; allowed: at most {ENTRIES:,} patterns, with numbers as values.'
        )
    for pattern in patterns:
        try:
            require_pattern(pattern, where)
        except UserError as error:
            raise DataError(str(error)) from error


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

    path, settings = _saved_classifier(network, tensors), timm.data.resolve_model_data_config(network)
    if path:
        network.set_submodule(path, nn.Identity())
    size = getattr(getattr(network, 'patch_embed', None), 'img_size', None) or settings['input_size'][1:]
    return Backbone(
        network,
        Layout(),
        Preprocessing(
            tuple(size), settings['mean'], settings['std'], settings['crop_pct'], settings['interpolation']
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


def _tuners(config: Config, network: nn.Module, source: str) -> tuple[list[Tuner], list[str]]:
    """The tuners of a configuration, and the modules of its LN tuning."""
    name, method = config['peft_type'], METHODS[config['peft_type']]
    saved = tuple(config.get('modules_to_save') or ())
    modules = {path: module for path, module in network.named_modules() if path}
    targets = [
        path
        for path in modules
        if _is_in(config.get('target_modules') or [], path)
        and not _is_in(config.get('exclude_modules') or [], path)
        and not _is_saved_whole(path, saved)
    ]
    if not targets:
        raise DataError(
            f'{source!r} has target_modules = {config.get("target_modules")!r}, which is no module of this '
            'network; give the backbone that was tuned.'
        )
    for path in targets:
        if name != 'LN_TUNING' and type(modules[path]) not in PLAIN:
            raise DataError(
                f'{source!r} has {path!r} among its target_modules, which is a '
                f'{type(modules[path]).__name__} here; vet reads adapters of Linear and Conv2d.'
            )
        _refuse_convolution(modules[path], path, name)
    groups: dict[tuple, list[str]] = {}
    for path in targets:
        rank = _by_pattern(config.get('rank_pattern'), path, config.get('r', 8)) if method.rank else 0
        alpha = (
            _by_pattern(config.get('alpha_pattern'), path, config.get(method.alpha, 8)) if method.rank else 0
        )
        groups.setdefault((rank, alpha), []).append(path)
    tuners = [method.build(config, paths, rank, alpha) for (rank, alpha), paths in groups.items()]
    whole = [
        path
        for path, module in modules.items()
        if saved and path.endswith(saved) and len(list(module.parameters()))
    ]
    return tuners + ([build_thaw(config, whole)] if whole else []), targets if name == 'LN_TUNING' else []


def _is_saved_whole(path: str, saved: tuple[str, ...]) -> bool:
    """Whether a name in modules_to_save is the module at `path`, or a module around it."""
    return any(fits_start(rf'(^|.*\.){name}($|\..*)', path) for name in saved)


def _is_in(pattern: str | list[str], path: str) -> bool:
    """Matches as PEFT does: a string is a regular expression, a list holds paths or ends of paths."""
    if isinstance(pattern, str):
        return fits(pattern, path)
    return path in pattern or path.endswith(tuple(f'.{name}' for name in pattern))


def _by_pattern(patterns: Mapping[str, object] | None, path: str, default: object) -> object:
    return next(
        (value for pattern, value in (patterns or {}).items() if fits_start(rf'(.*\.)?({pattern})$', path)),
        default,
    )


# Writing ----------------------------------------------------------------------------------------------------


def _head(model: ImageClassifier) -> Tensors:
    """The linear head's tensors under their names in timm's network. Empty for a head that adds nothing."""
    state, path = model.head.state_dict(), _classifier(model.backbone.network)
    if not state:
        return {}
    if set(state) != {'fc.weight', 'fc.bias'}:
        raise UserError(
            f'the head {type(model.head).__name__} cannot be written for PEFT, which saves the classifier of '
            'the network, a Linear.'
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
    by_path, kind = {}, METHODS[method]
    if not kind.rank:
        return {}
    for path, delta in deltas.items():
        rank = kind.rank(delta, network.get_parameter(f'{path}.weight'))
        by_path[path] = rank, delta.scale * rank
    (rank, alpha), _ = Counter(by_path.values()).most_common(1)[0]
    return {
        'r': rank,
        kind.alpha: alpha,
        'rank_pattern': {f'^{re.escape(path)}': r for path, (r, _) in by_path.items() if r != rank},
        'alpha_pattern': {f'^{re.escape(path)}': a for path, (_, a) in by_path.items() if a != alpha},
    }
