"""The proof that a tuned network runs: one forward, and one backward where edits act on what flows.

The proof runs on the meta device, where tensors have shapes and no numbers, in training mode. So it takes no memory
and little time. Where a network needs numbers to run, the proof is one real image in eval mode. Used by core.tuner.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from vet.core.budget import unbounded
from vet.core.kept import kept_dropped
from vet.core.modes import in_eval, modes_kept
from vet.core.reweight import reweights_of

IMAGES = 2  # batch norms that train need two


def prove(backbone: Any, trainable: Sequence[nn.Parameter]) -> None:
    """Runs the tuned network of a Backbone. Raises what the network raises.

    trainable: the parameters of which a backward computes the gradients; none: there is no backward.
    Weights, gradients, statistics, random states, modes and whatever modules keep stay untouched.
    """
    modules = list(_modules(backbone.network))
    with modes_kept(modules), _random_states_kept(backbone), _without_compiler():
        try:
            _run_without_numbers(backbone, modules, trainable)
        except Exception:  # a step that needs numbers, or the tuner's fault: an image tells
            images = next(backbone.network.parameters()).new_zeros(1, 3, *backbone.preprocessing.size)
            with in_eval(backbone), kept_dropped(modules):
                _run(backbone, images, trainable)


def _run_without_numbers(backbone: Any, modules: list[nn.Module], trainable: Sequence[nn.Parameter]) -> None:
    with unbounded(), kept_dropped(modules), _on_meta(modules) as made:
        for module in modules:
            module.training = True
        backbone.train()  # batch norms that do not train stay in eval
        parameters = [made[id(parameter)] for parameter in trainable if id(parameter) in made]
        _run(backbone, torch.empty(IMAGES, 3, *backbone.preprocessing.size, device='meta'), parameters)


def _run(backbone: Any, images: torch.Tensor, parameters: list[Any]) -> None:
    with torch.enable_grad():
        features = backbone.network(images)
        wanted = (len(images), backbone.num_features)
        if tuple(features.shape) != wanted:
            raise ValueError(f'the network gives {tuple(features.shape)} in place of {wanted}')
        if parameters and features.requires_grad:
            torch.autograd.grad(features.sum(), parameters, allow_unused=True)


def _modules(network: nn.Module) -> Iterator[nn.Module]:
    """Those of the network, and those of every edit on it."""
    yield from network.modules()
    yield from _deltas(network)


def _deltas(network: nn.Module) -> Iterator[nn.Module]:
    for module in network.modules():
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        placed = [argument for hook in hooks for argument in getattr(hook, 'args', ())]
        for delta in (*placed, *(edit.delta for edit in reweights_of(module))):
            if isinstance(delta, nn.Module):
                yield from _with_shared(delta)


def _with_shared(delta: nn.Module) -> Iterator[nn.Module]:
    """A delta, and what the delta uses without owning it, see Tuner.share."""
    for module in delta.modules():
        yield module
        for value in vars(module).values():
            if isinstance(value, nn.Module):
                yield from value.modules()


@contextmanager
def _on_meta(modules: Iterable[nn.Module]) -> Iterator[dict[int, torch.Tensor]]:
    """Within, the modules' parameters and buffers have no numbers. Gives, by the id of each, what stands for it."""
    made: dict[int, Any] = {}
    kept: list[tuple[dict, str, torch.Tensor]] = []
    try:
        for module in dict.fromkeys(modules):
            for tensors in (module._parameters, module._buffers):
                for name, tensor in list(tensors.items()):
                    if tensor is None:
                        continue
                    kept.append((tensors, name, tensor))
                    if id(tensor) not in made:
                        made[id(tensor)] = _without_numbers(tensor)
                    tensors[name] = made[id(tensor)]
        yield made
    finally:
        for tensors, name, tensor in kept:
            tensors[name] = tensor


def _without_numbers(tensor: torch.Tensor) -> torch.Tensor:
    bare = tensor.detach().to('meta')
    return nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare


def _random_states_kept(backbone: Any) -> AbstractContextManager:
    device = next(backbone.network.parameters()).device
    return torch.random.fork_rng([device] if device.type == 'cuda' else [])


def _without_compiler() -> AbstractContextManager:
    """Within, a network that torch.compile compiled runs as written: a graph for one image would take a minute."""
    return torch.compiler.set_stance('force_eager') if 'torch._dynamo' in sys.modules else nullcontext()
