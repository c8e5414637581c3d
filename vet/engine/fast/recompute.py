"""Gradient checkpointing: the backward pass computes blocks again, in place of keeping their tensors.

Each block's own forward is wrapped. So tuners at a block, in a block and at a container of blocks all act.
timm's own mode calls the blocks without their container, and counts the statistics of batch norms twice.
Entered by door.py.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vet.core.edits import statistics
from vet.core.multitask import Classifier
from vet.core.reweight import forward_replaced
from vet.errors import UserError


@contextmanager
def blocks_recomputed(model: Classifier) -> Iterator[None]:
    """Within this context, a model keeps for the backward pass only the tensors between its blocks.

    UserError for a network in which no blocks are known.
    """
    with ExitStack() as stack:
        for classifier in model.tasks.values():
            network = classifier.backbone.network
            names = classifier.backbone.sites.blocks
            if not names:
                raise UserError(
                    f'train.gradient_checkpointing is True, but {type(network).__name__} has no blocks that '
                    'could be computed again. Set train.gradient_checkpointing to False, or name the blocks '
                    'in model.backbone.roles.'
                )
            tuned = [module for module in classifier.tuners.modules() if statistics(module)]
            for block in map(network.get_submodule, names):
                norms = [module for module in block.modules() if statistics(module)]
                stack.enter_context(forward_replaced(block, partial(_again, block.forward, norms + tuned)))
        yield


def _again(forward: Callable, norms: list[nn.Module], *args: Any, **kwargs: Any) -> object:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _statistics_kept(norms)

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextmanager
def _statistics_kept(norms: list[nn.Module]) -> Iterator[None]:
    """Within this context, norms change only copies of their running statistics.

    The first forward has changed these.
    """
    buffers = [
        (module, name, getattr(module, name))
        for module in norms
        if module.training
        for name in statistics(module)
    ]
    for module, name, buffer in buffers:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
