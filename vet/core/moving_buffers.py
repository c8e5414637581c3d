"""Finds the buffers that the forward of a network changes, such as a counter or the vectors of a spectral
norm. The statistics of norms are left out.

own_backbone.py asks for these buffers, so that a training keeps their numbers.
"""

import torch
from torch import nn

from vet.core.caches import caches_discarded
from vet.core.edits import statistics
from vet.core.example import Example
from vet.core.modes import modes_kept

IMAGES = 2  # batch norms that train need two


def moving_buffers(network: nn.Module, example: Example) -> list[str]:
    """The names of the buffers of the state_dict that a forward in train mode changes.

    The statistics of norms are left out, because they move only if the norm trains. The network stays as it
    is.
    """
    found = [name for name in _buffers(network) if name in network.state_dict()]
    if not found:
        return []
    modules = list(network.modules())
    with modes_kept(modules), caches_discarded(modules), torch.no_grad():
        before = {name: buffer.clone() for name, buffer in _buffers(network).items()}
        with torch.random.fork_rng(devices=[]):
            example.of_images(IMAGES).call(network.train())
        after = _buffers(network)
        return [name for name in found if not torch.equal(before[name], after[name])]


def _buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers of all modules, without the statistics of norms."""
    return {
        f'{path}.{name}'.lstrip('.'): buffer
        for path, module in network.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in statistics(module)
    }
