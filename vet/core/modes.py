"""A network in eval mode for a while. Imported by whatever looks at networks."""

from collections.abc import Iterator
from contextlib import contextmanager

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
