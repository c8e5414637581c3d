"""Modes of modules: eval or uncompiled for a while, and frozen norms that stay in eval mode."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn

from vet.core.caches import clear_caches
from vet.core.norms import has_statistics
from vet.torch_private import has_compiled

ASKED = '_asked_mode'  # in the __dict__ of a held norm: the mode that the user asked for


@contextmanager
def in_eval(network: nn.Module) -> Iterator[None]:
    """Within this context, all of `network` is in eval mode. Afterwards, each module has its old mode.

    In eval mode, some modules keep a result. vet drops these results at the start and at the end.
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
    """Within this context, modules may change their modes. Afterwards, each module has its old mode."""
    restore = modes_noted(modules, releases=False)
    try:
        yield
    finally:
        restore()


def modes_noted(modules: Iterable[nn.Module], releases: bool = True) -> Callable[[], None]:
    """Notes the modes of modules. The result is a function that gives each module its noted mode again.

    releases: whether the function releases the norms that are held since, see `hold_statistics`.
    """
    modes = [(module, module.training, module.__dict__.get(ASKED)) for module in modules]

    def restore() -> None:
        for module, training, asked in modes:
            if asked is not None:
                module.__dict__[ASKED] = asked
            elif releases and ASKED in module.__dict__:
                del module.__dict__[ASKED]
                del module.__dict__['train']
            module.training = training

    return restore


def uncompiled() -> AbstractContextManager:
    """Within this context, a compiled network runs uncompiled. To compile a graph for one image would take a
    minute, and the code that watches the network would be compiled too.
    """
    return torch.compiler.set_stance('force_eager') if has_compiled() else nullcontext()


def hold_statistics(network: nn.Module) -> None:
    """From now on, a norm with running statistics is in train mode only while its scale trains.

    Otherwise the statistics would drift. This also holds if the user calls `train` of the network or of the
    norm. A norm whose instance has a `train` of the user's stays as it is. A second call reads again which
    scales train.
    """
    for module in network.modules():
        if ASKED in module.__dict__:
            module.train(module.__dict__[ASKED])
        elif has_statistics(module) and 'train' not in module.__dict__:
            object.__setattr__(module, 'train', partial(_train, module))
            module.train(module.training)


def release_statistics(network: nn.Module) -> None:
    """Undoes `hold_statistics`: each norm is in the mode that the user asked for."""
    for module in network.modules():
        if ASKED in module.__dict__:
            del module.__dict__['train']
            module.train(module.__dict__.pop(ASKED))


def _train(norm: nn.Module, mode: bool = True) -> nn.Module:
    """The `train` of a norm that is held."""
    norm.__dict__[ASKED] = mode
    weight = getattr(norm, 'weight', None)
    return type(norm).train(norm, mode and weight is not None and weight.requires_grad)
