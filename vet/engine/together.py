"""Decisions that one process of a run makes for all processes."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

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
