"""Decisions that one process of a run makes for all processes."""

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from vet.errors import ToldError, UserError


def on_main(accelerator: Accelerator, make: Callable[[], object]) -> Any:
    """The result of `make` on the main process, for all processes. Its UserError is raised on all."""
    shared: list[object] = [None, None]
    if accelerator.is_main_process:
        try:
            shared[0] = make()
        except UserError as error:
            if accelerator.num_processes > 1:
                broadcast_object_list([None, str(error)])
            raise
    if accelerator.num_processes > 1:
        broadcast_object_list(shared)
    if shared[1] is not None:
        raise ToldError(shared[1])
    return shared[0]
