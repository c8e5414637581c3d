"""Replaces the computation of frozen norms for a while: for frozen_in_bf16.py and frozen_batch_norm.py."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn

from vet.core.multitask import Classifier
from vet.core.reweight import forward_replaced


@contextmanager
def frozen_norms_compute(
    normed: Callable[..., torch.Tensor], kinds: tuple[type[nn.Module], ...], model: Classifier
) -> Iterator[None]:
    """Within this context, each frozen norm of a model's backbone computes `normed(norm, x)`.

    Only norms of exactly these classes count. Norms that train, also in a later stage, stay as they are.
    Norms that a tuner edits stay too.
    """
    trained = {*model.trainable().values()}
    with ExitStack() as stack:
        for classifier in model.tasks.values():
            for module in classifier.backbone.network.modules():
                if type(module) not in kinds or 'forward' in module.__dict__:
                    continue
                if not any(p.requires_grad or p in trained for p in module.parameters()):
                    stack.enter_context(forward_replaced(module, partial(normed, module)))
        yield
