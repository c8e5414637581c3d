"""A network otherwise for a while: in eval mode, or a module of it with another forward. Imported by whatever looks at networks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


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
