"""adapter_config.json, the configuration of a PEFT adapter: the settings that vet reads, and their tuners.

peft.py reads the configuration of a folder here, and makes its tuners.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vet.core.permits import ENTRIES, LARGEST, walk
from vet.core.tuner import Tuner
from vet.errors import DataError, UnknownNameError, UserError, shown
from vet.files import JsonObject
from vet.hub.model_folder import read_json
from vet.hub.peft_lora import idle, places, require_known
from vet.hub.peft_methods import METHODS, build_thaw
from vet.hub.peft_terms import Config
from vet.patterns import fits, fits_start, require_pattern

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


def read_config(path: Path) -> JsonObject:
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


def tuners_of(config: Config, network: nn.Module, source: str) -> tuple[list[Tuner], list[str]]:
    """The tuners of a configuration, and the modules of its LN tuning."""
    name = config['peft_type']
    method = METHODS[config['peft_type']]
    saved = tuple(config.get('modules_to_save') or ())
    modules = {path: module for path, module in network.named_modules() if path}
    targets = [
        path
        for path in modules
        if _is_in(config.get('target_modules') or [], path)
        and not _is_in(config.get('exclude_modules') or [], path)
        and not _is_saved_whole(path, saved)
    ]
    if name == 'LORA':
        without_effect = set(idle(network))
        targets = [path for path in targets if path not in without_effect]
    if not targets:
        raise DataError(
            f'{source!r} has target_modules = {config.get("target_modules")!r}, which is no module of this '
            'network; give the backbone that was tuned.'
        )
    for path in targets:
        if name != 'LN_TUNING' and not _is_read(modules[path], name):
            raise DataError(
                f'{source!r} has {path!r} among its target_modules, which is a '
                f'{type(modules[path]).__name__} here; vet reads adapters of Linear and Conv2d, and LoRA of '
                'nn.MultiheadAttention.'
            )
        refuse_convolution(modules[path], path, name)
    groups: dict[tuple, list[str]] = {}
    for path in targets:
        rank: Any = 0
        alpha: Any = 0
        if method.rank:
            rank = _by_pattern(config.get('rank_pattern'), path, config.get('r', 8))
            alpha = _by_pattern(config.get('alpha_pattern'), path, config.get(method.alpha, 8))
        if isinstance(modules[path], nn.MultiheadAttention):
            require_known(config.get('peft_version'), source)
        for place, times in places(path, modules[path]):
            groups.setdefault((rank, alpha * times, place == path), []).append(place)
    tuners = []
    for (rank, alpha, has_dropout), at in groups.items():
        settings = config if has_dropout else config | dict(lora_dropout=0.0)  # PEFT has none in attentions
        tuners.append(method.build(settings, at, rank, alpha))
    whole = [
        path
        for path, module in modules.items()
        if saved and path.endswith(saved) and len(list(module.parameters()))
    ]
    return tuners + ([build_thaw(config, whole)] if whole else []), targets if name == 'LN_TUNING' else []


def _is_read(module: nn.Module, method: str) -> bool:
    """Whether vet reads an update of a module."""
    return type(module) in PLAIN or method == 'LORA' and isinstance(module, nn.MultiheadAttention)


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


def refuse_convolution(module: nn.Module, path: str, method: str) -> None:
    """Refuses convolutions for which PEFT computes another operation.

    PEFT's A takes all channels, without dilation. PEFT pads updates with zeros.
    """
    if isinstance(module, nn.Conv2d) and (
        not METHODS[method].takes_convolutions
        or module.padding_mode != 'zeros'
        or method == 'LORA'
        and (module.groups != 1 or set(module.dilation) != {1})
    ):
        raise UserError(
            f"{path!r} is {module}; PEFT's {method} of such a convolution is not an update of its weight."
        )
