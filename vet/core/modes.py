"""A network otherwise for a while: in eval mode, or a module of it with another forward; and whether somebody records it.

Imported by whatever looks at networks.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def is_recorded() -> bool:
    """Whether a compiler, torch.jit or torch.func follows what is computed: the first fuses by itself, the others refuse functions
    of our own that write into their input."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()


@contextmanager
def in_eval(network: nn.Module) -> Iterator[None]:
    """Within, all of `network` is in eval mode; after it, each module is in the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within, the module computes `forward`, and none of its own; after it, what it computed before."""
    own = vars(module).get('forward')
    object.__setattr__(module, 'forward', forward)
    try:
        yield
    finally:
        del vars(module)['forward']
        if own is not None:
            object.__setattr__(module, 'forward', own)
