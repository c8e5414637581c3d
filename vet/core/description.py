"""The description of a network: what a model folder compares, so that another network is refused by name.

hub/network_folder.py compares descriptions. backbones/libraries.py tells by them whether it can build a
network again.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from vet.core.backbone import weights_sha256

PLAIN = (bool, int, float, str)
# Attributes of modules that do not change what a network computes in eval mode, or that depend on the machine
IGNORED = ('training', 'checkpoint', 'fused', 'gradient', '_', 'export', 'scriptable')


def describe(network: nn.Module, without: Iterable[str] = ()) -> dict[str, Any]:
    """The class of a network, the types and shapes of its tensors, the settings of its modules, and its
    values.

    without: the names of tensors whose values do not count: those that train whole, and those whose bytes
        differ between processors.
    """
    left_out = set(without)
    state = network.state_dict()
    counted = {name: tensor for name, tensor in state.items() if name not in left_out}
    return dict(
        kind=type(network).__name__,
        sha256=weights_sha256(counted),
        shapes=shapes_of(network),
        settings=settings_of(network),
        values={name: weights_sha256({'': tensor})[:16] for name, tensor in counted.items()},
    )


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
        name: value
        for name, value in vars(module).items()
        if type(value) in PLAIN
        and not name.startswith(IGNORED)
        and 'drop' not in name
        and 'checkpoint' not in name
    }
    return f'{type(module).__name__}({", ".join(f"{name}={value!r}" for name, value in settings.items())})'
