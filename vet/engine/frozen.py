"""What a training under autocast keeps of a frozen network: weights in the dtype that it computes in, and half of what norms keep.

Imported by learner.py alone.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from vet.core.edits import Reweight, all_split, parameter_or_none
from vet.core.modes import instead

CAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)     # whose weights autocast casts, and that read them alone


@contextmanager
def stored_in(dtype: torch.dtype, model: Any) -> Iterator[None]:
    """Within, the weights and biases of the linear layers and convolutions of a model's backbone are of `dtype`, but for those that
    train and those that a tuner's update is computed from. After it, they are bit for bit what they were.

    They need no cast in every step, which the backward pass would keep. Autocast makes the same tensors of them, so all results
    are its results, bit for bit.
    """
    kept = {parameter: parameter.data for parameter in _storable(model)}
    for parameter, exact in kept.items():
        parameter.data = exact.to(dtype)
        kept[parameter] = exact if exact.device.type == 'cpu' else exact.cpu()      # not both in a GPU's memory
    try:
        yield
    finally:
        for parameter, exact in kept.items():
            parameter.data = exact.to(parameter.device)


@contextmanager
def norms_keep(dtype: torch.dtype, model: Any) -> Iterator[None]:
    """Within, a frozen LayerNorm keeps its float32 input for the backward pass in `dtype`. Outputs stay what they are; gradients
    change by no more than the rounding of those that autocast passes on anyway."""
    trained = {*model.trainable().values()}         # those that a later stage trains among them
    norms: list[Any] = [module for part in model.tasks.values() for module in part.backbone.network.modules()
                        if isinstance(module, nn.LayerNorm) and 'forward' not in module.__dict__
                        and not any(parameter.requires_grad or parameter in trained for parameter in module.parameters())]
    with ExitStack() as stack:
        for norm in norms:
            stack.enter_context(instead(norm, partial(_normed, norm, dtype)))
        yield


def _normed(norm: Any, dtype: torch.dtype, x: torch.Tensor) -> torch.Tensor:
    def pack(kept: torch.Tensor) -> torch.Tensor:
        return kept.to(dtype) if kept.shape == x.shape else kept

    def unpack(kept: torch.Tensor) -> torch.Tensor:
        return kept.float() if kept.shape == x.shape else kept

    if torch.compiler.is_compiling() or x.dtype != torch.float32:       # a compiler chooses by itself what it keeps
        return type(norm).forward(norm, x)
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return type(norm).forward(norm, x)


def _storable(model: Any) -> list[nn.Parameter]:
    left: set[Any] = {*model.trainable().values()}
    for edit in (edit for part in model.tasks.values() for edit in part.edits if isinstance(edit, Reweight)):
        if getattr(edit.delta, 'reads_weight', True) or not all_split(edit.host):
            left |= {parameter_or_none(edit.host, edit.weight_name), parameter_or_none(edit.host, edit.bias_name)}
    return [parameter for part in model.tasks.values() for module in part.backbone.network.modules() if type(module) in CAST
            for parameter in module.parameters(recurse=False)
            if parameter not in left and not parameter.requires_grad and parameter.dtype == torch.float32]
