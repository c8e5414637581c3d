"""Gradient checkpointing: what a block computes is not kept, but computed again in the backward pass.

Imported by learner.py alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vet.errors import UserError


@contextmanager
def blocks_again(model: Any) -> Iterator[None]:
    """Within, the networks of a model keep for the backward pass what flows between their blocks, and nothing in them.

    UserError for a network that has no such mode; timm's have it.
    """
    networks = [part.backbone.network for part in model.tasks.values()]
    try:
        for network in networks:
            _set(network, True)
        yield
    finally:
        for network in networks:
            _set(network, False)


def _set(network: Any, enable: bool) -> None:
    try:
        network.set_grad_checkpointing(enable)
    except (AttributeError, AssertionError) as error:       # as timm's models say that they cannot
        if enable:
            raise UserError(f'train.gradient_checkpointing is True, but {type(network).__name__} cannot compute its blocks again, '
                            f"as most of timm's models can; set it to False.") from error
