"""Sets a network to eval mode for a while."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from vet.core.caches import clear_caches


@contextmanager
def in_eval(network: nn.Module) -> Iterator[None]:
    """Within this context, all of `network` is in eval mode. Afterwards, each module has its old mode.

    Some modules keep a result in eval mode. Such results are forgotten before and after.
    """
    modules = list(network.modules())
    with modes_kept(modules):
        network.eval()
        clear_caches(modules)
        try:
            yield
        finally:
            clear_caches(modules)


@contextmanager
def modes_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, modules may change their modes; after it, each is in the mode that it was in."""
    modes = [(module, module.training) for module in modules]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
