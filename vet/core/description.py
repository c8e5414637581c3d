"""The description of a network: what a model folder compares, so that another network is refused by name.

hub/network_folder.py compares descriptions. backbones/libraries.py tells by them whether it can build a
network again.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from vet.core.backbone import Description, weights_sha256

PLAIN = (bool, int, float, str)
CLOSE = 1e-6  # of the sum of the absolute values; a processor computes cosines with an error of about 1e-7
# Attributes of modules that do not change what a network computes in eval mode, or that depend on the machine
IGNORED = (
    'training',
    'checkpoint',
    'forward',
    'fused',
    'gradient',
    '_',
    'export',
    'scriptable',
    'name_or_path',
)
Fingerprint = list[Any]  # of a buffer: its type, its shape and a digest of its numbers


def describe(network: nn.Module, without: Iterable[str] = ()) -> Description:
    """The class of a network, the types and shapes of its tensors, the settings of its modules, its values,
    and the fingerprints of its tensors that are not in its state_dict.

    without: the names of tensors whose values do not count: those that train whole, and those whose bytes
        differ between processors.
    """
    state = network.state_dict(keep_vars=True)
    tied = {id(state[name]) for name in without if name in state}
    left_out = {name for name, tensor in state.items() if id(tensor) in tied}
    counted = {name: tensor for name, tensor in state.items() if name not in left_out}
    return dict(
        kind=type(network).__name__,
        sha256=weights_sha256(counted),
        shapes=shapes_of(network),
        settings=settings_of(network),
        values={name: value_of(tensor) for name, tensor in counted.items()},
        buffers={name: _fingerprint(tensor) for name, tensor in _unsaved(network, state)},
    )


def value_of(tensor: torch.Tensor) -> str:
    """The first digits of the sha256 of a tensor."""
    return weights_sha256({'': tensor})[:16]


def shapes_of(network: nn.Module) -> dict[str, str]:
    """{name: 'float32 [5, 32]'} of the tensors in the network's state_dict."""
    return {
        name: f'{str(tensor.dtype).removeprefix("torch.")} {list(tensor.shape)}'
        for name, tensor in network.state_dict().items()
    }


def settings_of(network: nn.Module) -> dict[str, str]:
    """{path: 'Linear(in_features=8, out_features=4)'} of the modules that compute something in eval mode."""
    return {path: _settings(module) for path, module in network.named_modules() if _counts(module)}


def _counts(module: nn.Module) -> bool:
    return not isinstance(module, nn.Identity) and 'Drop' not in type(module).__name__


def _settings(module: nn.Module) -> str:
    settings = {
        name: text
        for name, value in vars(module).items()
        if not name.startswith(IGNORED)
        and name != 'train'  # the method, on an instance that stays in eval mode
        and 'drop' not in name
        and 'checkpoint' not in name
        and (text := _told(value))
    }
    return f'{type(module).__name__}({", ".join(f"{name}={text}" for name, text in settings.items())})'


def _told(value: object) -> str:
    """A setting as text, which is the same in every process. '': the value is no setting."""
    if type(value) in PLAIN:
        return repr(value)
    if isinstance(value, tuple | list):
        return f'[{", ".join(_told(item) or "…" for item in value)}]'
    if isinstance(value, partial):
        given = ', '.join(f'{name}={_told(argument) or "…"}' for name, argument in value.keywords.items())
        return f'{_told(value.func)}({given})'
    return getattr(value, '__qualname__', '')


def _unsaved(network: nn.Module, state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that the modules hold beside the state_dict: buffers, and plain attributes."""
    for path, module in network.named_modules():
        held = {**vars(module), **dict(module.named_buffers(recurse=False))}
        for name, value in held.items():
            key = f'{path}.{name}'.lstrip('.')
            if isinstance(value, torch.Tensor) and key not in state and not name.startswith(IGNORED):
                yield key, value


def _fingerprint(tensor: torch.Tensor) -> Fingerprint:
    """The type and shape of a tensor, and two weighted sums of its numbers.

    Processors compute cosines a little differently, so a sha256 of the numbers would differ.
    """
    kind = f'{str(tensor.dtype).removeprefix("torch.")} {list(tensor.shape)}'
    if not tensor.is_floating_point():
        return [f'{kind} {value_of(tensor)}', 0.0, 0.0]
    numbers = torch.nan_to_num(tensor.detach().cpu().double().flatten(), 0.5, 1e3, -1e3)
    weights = torch.arange(1, len(numbers) + 1, dtype=torch.float64).mul(0.618).frac() + 0.5
    return [kind, float(numbers.abs().sum()), float(numbers @ weights)]


def is_fingerprint(value: object) -> bool:
    """Whether a value of a file is the fingerprint of a tensor."""
    return (
        isinstance(value, list)
        and [type(number) for number in value[1:]] == [float, float]
        and isinstance(value[0], str)
    )


def differing_buffers(wanted: Mapping[str, Fingerprint], given: Mapping[str, Fingerprint]) -> list[str]:
    """The names whose fingerprints differ. A name that one network lacks does not count: networks keep
    tensors for speed.
    """
    return [name for name in wanted if name in given and not _alike(wanted[name], given[name])]


def _alike(one: Fingerprint, other: Fingerprint) -> bool:
    room = CLOSE * max(one[1], other[1])
    return one[0] == other[0] and all(abs(x - y) <= room for x, y in zip(one[1:], other[1:]))
