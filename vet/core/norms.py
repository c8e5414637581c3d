"""What a norm is: torch's norms, and those that libraries write themselves. Used by sites, edits and tuners."""

import re

from torch import nn

from vet.core.flow import WEIGHTED
from vet.torch_private import BATCH_NORM

KNOWN = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, BATCH_NORM)
# RmsNorm, EvoNorm2dB0, FilterResponseNormAct2d, GlobalResponseNorm, …; Affine stands where ResMLP has its norms
NAMED = re.compile(r'\w*Norm(?![a-z])\w*|Affine')


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a norm that has something to train: numbers of its own, and no layer within."""
    if next(module.parameters(recurse=False), None) is None:
        return False
    if isinstance(module, KNOWN):
        return True
    named = NAMED.fullmatch(type(module).__name__) is not None
    return named and not any(isinstance(part, WEIGHTED) for part in module.modules())


def has_statistics(module: nn.Module) -> bool:
    """Whether the module keeps statistics of what it saw in training."""
    return any(name.startswith('running_') for name, _ in module.named_buffers(recurse=False))
