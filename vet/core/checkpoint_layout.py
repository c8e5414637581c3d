"""Unpacks checkpoints. Training programs add dicts within dicts, averages beside weights, and prefixes of
names.

Used by core.backbone. Imports nothing of vet.
"""

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch

AVERAGES = ('state_dict_ema', 'model_ema', 'ema', 'ema_state_dict', 'model_ema_state_dict', 'ema_model')
WEIGHTS = ('state_dict', 'model', 'model_state_dict', 'module', 'net')
# prefixes of wrappers for several processes, of torch.compile, and of Lightning
PREFIXES = ('module.', '_orig_mod.', 'model.')


def unwrapped(state: object, source: str, use_ema: bool = True) -> Any:
    """The innermost dict under the names that hold weights.

    If a dict holds weights and their average, `use_ema` chooses, and a warning says so. A warning also names
    other weights of the same network, such as those of a teacher, which are not used.
    """
    while isinstance(state, Mapping):
        averages = [name for name in AVERAGES if isinstance(state.get(name), Mapping)]
        weights = [name for name in WEIGHTS if isinstance(state.get(name), Mapping)]
        order = averages + weights if use_ema else weights + averages
        if not order:
            break
        if averages and weights:
            other = weights[0] if use_ema else averages[0]
            warnings.warn(
                f'{source} holds weights, {weights[0]!r}, and their average over the training, '
                f'{averages[0]!r}: {order[0]!r} is used, and {other!r} is not. '
                f'model.backbone.use_ema={not use_ema} uses {other!r}.',
                stacklevel=2,
            )
        others = [name for name in state if name not in order and _are_alike(state[name], state[order[0]])]
        if others:
            warnings.warn(
                f'{source} holds weights of the same names under {order[0]!r} and under '
                f'{", ".join(map(repr, others))}: {order[0]!r} is used. To take other weights, save them '
                'alone, and give the new file.',
                stacklevel=2,
            )
        state = state[order[0]]
    return state


def _are_alike(one: object, other: object) -> bool:
    """Whether both are dicts that hold tensors of the same names, apart from prefixes."""
    names = [
        set(plain_names(value)) if isinstance(value, Mapping) else set()
        for value in (unwrapped(one, '') if isinstance(one, Mapping) else one, unwrapped(other, ''))
    ]
    return bool(names[0]) and names[0] == names[1]


def plain_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without the prefixes that all names share, and without the counter of torch's
    AveragedModel.
    """
    plain = {str(name): value for name, value in state.items() if name != 'n_averaged'}
    while shared := _shared_prefix(plain):
        plain = {name.removeprefix(shared): value for name, value in plain.items()}
    return plain


def _shared_prefix(names: Collection[str]) -> str:
    """The first of PREFIXES that all names have. '': no prefix, or no names."""
    for prefix in PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            return prefix
    return ''
