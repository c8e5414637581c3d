"""Batch norms that train: a channel may have one value, and all processes share one set of statistics.

Only learner.py imports this file.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn

from vet.core.edits import statistics
from vet.core.reweight import forward_replaced
from vet.torch_private import BATCH_NORM


@contextmanager
def single_values_normed(model: nn.Module) -> Iterator[None]:
    """Within this context, a batch norm that gets one value per channel uses its running statistics.

    The running statistics do not change then. torch refuses such a batch: one image, behind a pool. All other
    batches are normalised as usual.
    """
    with ExitStack() as stack:
        for norm in model.modules():
            if isinstance(norm, BATCH_NORM):
                stack.enter_context(forward_replaced(norm, partial(_normed, norm, norm.forward)))
        yield


def _normed(
    norm: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    if not norm.training or x.numel() > x.shape[1]:
        return forward(x)
    norm.training = False
    try:
        return forward(x)
    finally:
        norm.training = True


@torch.no_grad()
def share_statistics(model: nn.Module, accelerator: Accelerator, images: int) -> None:
    """Each running statistic that trains becomes its mean over all processes, weighted by their images in the
    step.

    So all processes evaluate and save the same model. In the step, each process has normalised by its own
    images.
    """
    if accelerator.num_processes == 1:
        return
    values = [getattr(norm, name) for norm in model.modules() if norm.training for name in statistics(norm)]
    if not values:
        return
    flat = torch.cat(
        [value.flatten().double() for value in values] + [torch.ones(1, device=values[0].device).double()]
    )
    total = accelerator.reduce(images * flat, 'sum')
    means = (total[:-1] / total[-1]).split([value.numel() for value in values])
    for value, mean in zip(values, means):
        value.copy_((mean if value.is_floating_point() else mean.round()).view_as(value))
