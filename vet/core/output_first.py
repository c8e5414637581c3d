"""The layout in which deltas see a weight: the output axis is first, as in (out, in / groups, kH, kW).

A transposed convolution has a weight (in, out / groups, kH, kW). The Conv1D of transformers has (in, out).
"""

import torch
from torch import nn

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def output_first(owner: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """The weight (in, out / groups, …) of the module `owner` as (out, in / groups, …).

    The same function turns (out, in / groups, …) back into (in, out / groups, …). A weight whose output axis
    is first stays unchanged.
    """
    if not _is_input_first(owner) or weight.dim() < 2:
        return weight
    groups = getattr(owner, 'groups', 1)
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).contiguous()


def _is_input_first(owner: nn.Module) -> bool:
    return isinstance(owner, TRANSPOSED) or type(owner).__name__ == 'Conv1D'
