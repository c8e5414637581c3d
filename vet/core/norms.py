"""Finds norms: torch's norms, and the norms that other libraries define."""

import re

from torch import nn

from vet.core.flow import WEIGHTED
from vet.torch_private import BATCH_NORM

KNOWN = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, BATCH_NORM)
# RmsNorm, EvoNorm2dB0, FilterResponseNormAct2d, GlobalResponseNorm, …; ResMLP has Affine in place of norms
NAMED = re.compile(r'\w*Norm(?![a-z])\w*|Affine')


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a norm with trainable parameters and without a layer inside."""
    if next(module.parameters(recurse=False), None) is None:
        return False
    if isinstance(module, KNOWN):
        return True
    named = NAMED.fullmatch(type(module).__name__) is not None
    return named and not any(isinstance(inner, WEIGHTED) for inner in module.modules())


def has_statistics(module: nn.Module) -> bool:
    """Whether the module keeps statistics of the activations in training."""
    return any(name.startswith('running_') for name, _ in module.named_buffers(recurse=False))
