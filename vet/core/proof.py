"""The proof that a tuned network runs: one forward, and one backward if edits act on activations.

A large network runs on the meta device, in training mode. Tensors there have shapes and no numbers, so the
proof takes no memory. Each function on the meta device takes up to half a millisecond. So a small network
runs on a real image, in eval mode. A network that needs numbers also runs on a real image.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from vet.core.budget import unbounded
from vet.core.caches import caches_discarded
from vet.core.channels import tensors_in
from vet.core.modes import in_eval, modes_kept, uncompiled
from vet.core.replaced import in_float32, replaced, without_numbers
from vet.core.reweight import reweights_of
from vet.torch_private import hooks_after, hooks_before

IMAGES = 2  # on the meta device: batch norms that train need two
# products for each module that is called; with fewer, a real image takes less time than the meta device
SMALL = 1.5e7


def prove(backbone: Any, trainable: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Runs the tuned network of a Backbone. Raises the error that the network raises.

    Returns those parameters of `trainable` that get no gradient.

    trainable: a backward computes the gradients of these parameters. Without parameters there is no backward.
    Weights, gradients, statistics, random states, modes and tensors that modules keep stay unchanged.
    """
    modules = list(_modules(backbone.network))
    with (
        modes_kept([backbone, *modules]),
        caches_discarded(modules),
        _random_states_kept(backbone),
        uncompiled(),
    ):
        if backbone.sites.products > SMALL * len(backbone.sites.calls):
            try:
                idle = _run_without_numbers(backbone, modules, trainable)
                return [trainable[i] for i in idle]
            except Exception:  # a step that needs numbers, or the tuner's fault: an image tells
                pass
        with in_eval(backbone), replaced(modules, in_float32) as made:
            for delta in _deltas(backbone.network):
                delta.training = False
            idle = _run(backbone, 1, [made.get(id(parameter), parameter) for parameter in trainable])
    return [trainable[i] for i in idle]


def _run_without_numbers(
    backbone: Any, modules: list[nn.Module], trainable: Sequence[nn.Parameter]
) -> list[int]:
    with unbounded(), caches_discarded(modules), replaced(modules, without_numbers) as made:
        for module in modules:
            module.training = True
        backbone.train()  # batch norms that do not train stay in eval
        return _run(backbone, IMAGES, [made.get(id(parameter), parameter) for parameter in trainable])


def _run(backbone: Any, images: int, parameters: Sequence[Any]) -> list[int]:
    """The places of the parameters that get no gradient."""
    example = backbone.example().of_images(images)
    with torch.enable_grad():
        outputs = list(tensors_in(example.call(backbone.network)))
        shapes = [tuple(output.shape[1:]) for output in outputs]
        wanted = tuple(backbone.sites.calls[''].out_shape)
        if wanted not in shapes:
            given = ', '.join(str((len(output), *shape)) for output, shape in zip(outputs, shapes))
            raise ValueError(f'the network gives {given} in place of {(images, *wanted)}')
        flowing = [output.float().sum() for output in outputs if output.requires_grad]
        gradients: Sequence[Any] = [None] * len(parameters)
        if parameters and flowing:
            gradients = torch.autograd.grad(flowing, parameters, allow_unused=True)
        return [i for i, gradient in enumerate(gradients) if gradient is None]


def _modules(network: nn.Module) -> Iterator[nn.Module]:
    """The modules of the network, and the modules of every edit on the network."""
    yield from network.modules()
    yield from _deltas(network)


def _deltas(network: nn.Module) -> Iterator[nn.Module]:
    for module in network.modules():
        hooks = (*hooks_before(module), *hooks_after(module))
        placed = [argument for hook in hooks for argument in getattr(hook, 'args', ())]
        for delta in (*placed, *(edit.delta for edit in reweights_of(module))):
            if isinstance(delta, nn.Module):
                yield from _with_shared(delta)


def _with_shared(delta: nn.Module) -> Iterator[nn.Module]:
    """The modules of a delta, and the modules that the delta shares with others, see Tuner.share."""
    for module in delta.modules():
        yield module
        for value in vars(module).values():
            if isinstance(value, nn.Module):
                yield from value.modules()


def _random_states_kept(backbone: Any) -> AbstractContextManager:
    device = next(backbone.network.parameters()).device
    return torch.random.fork_rng([device] if device.type == 'cuda' else [])
