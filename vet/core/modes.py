"""A network in eval mode for a while, and whether somebody records what a network computes.

Imported by whatever looks at networks.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def is_recorded() -> bool:
    """Whether a compiler, torch.jit or torch.func follows what is computed: the first fuses by itself, the
    others refuse functions of our own that write into their input."""
    return (
        torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()
    )


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
