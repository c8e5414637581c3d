"""Every optimizer of torch.optim by its name."""

import inspect

import torch

from vet.optimizers.ranges import MEANINGS, RANGES
from vet.registry import OPTIMIZERS

# LBFGS calls the model again within a step. SparseAdam takes only sparse gradients.
LEFT_OUT = (torch.optim.LBFGS, torch.optim.SparseAdam)
OPTIMIZERS.arguments.update(RANGES)
OPTIMIZERS.meanings.update(MEANINGS)

for _name, _optimizer in vars(torch.optim).items():
    if (
        inspect.isclass(_optimizer)
        and issubclass(_optimizer, torch.optim.Optimizer)
        and _optimizer not in (torch.optim.Optimizer, *LEFT_OUT)
    ):
        OPTIMIZERS.register_module(name=_name, module=_optimizer)
