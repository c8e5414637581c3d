"""Other tensors in the place of a module's parameters: in the module, or in a shadow of the module.

Tensors are given by parameter path, such as 'proj.weight'.
Used by core.reweight.
"""

from collections.abc import Mapping

import torch
from torch import nn

from vet.torch_private import children_of, parameters_of, shallow_copy

Tensors = dict[str, torch.Tensor | None]


def parameter_or_none(module: nn.Module, path: str) -> torch.Tensor | None:
    """The parameter at a dotted path.

    None: the module has no such parameter, such as a convolution without bias.
    """
    owner, _, name = path.rpartition('.')
    return parameters_of(module.get_submodule(owner)).get(name)


def shadow(module: nn.Module, tensors: Mapping[str, torch.Tensor | None]) -> nn.Module:
    """A shadow of `module` that reads `tensors` for its parameters.

    `module` does not change, so threads may share it.
    """
    copy = shallow_copy(module)
    below: dict[str, Tensors] = {}
    for path, tensor in tensors.items():
        child, _, rest = path.partition('.')
        if rest:
            below.setdefault(child, {})[rest] = tensor
        else:
            parameters_of(copy)[child] = tensor
    for child, inner in below.items():
        children_of(copy)[child] = shadow(module.get_submodule(child), inner)
    return copy


def put_tensors(module: nn.Module, tensors: Mapping[str, torch.Tensor | None]) -> None:
    """The module reads `tensors` for its parameters from now on."""
    for path, tensor in tensors.items():
        owner, _, name = path.rpartition('.')
        parameters_of(module.get_submodule(owner))[name] = tensor
