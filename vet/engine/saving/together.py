"""Sends decisions about the work folder, and tensors, from the main process of a run to all processes."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list

from vet.errors import ToldError, UserError

Made = TypeVar('Made')


def on_main(accelerator: Accelerator, make: Callable[[], Made]) -> Made:
    """The result of `make` on the main process, for all processes. Its UserError is raised on all."""
    results: list[Made] = []
    errors: list[str] = []
    if accelerator.is_main_process:
        try:
            results.append(make())
        except UserError as error:
            if accelerator.num_processes > 1:
                broadcast_object_list([results, [str(error)]])
            raise
    if accelerator.num_processes > 1:
        results, errors = broadcast_object_list([results, errors])
    if errors:
        raise ToldError(errors[0])
    return results[0]


@torch.no_grad()
def share(accelerator: Accelerator, state: Mapping[str, torch.Tensor]) -> None:
    """All processes get the values of the main process in `state`."""
    if accelerator.num_processes > 1:
        for name, value in broadcast(state).items():
            state[name].copy_(value)
