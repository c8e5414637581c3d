"""What one process of a run decides for all of them."""

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from vet.errors import ToldError, UserError


def on_main(accelerator: Accelerator, make: Callable[[], Any]) -> Any:
    """What `make` returns on the main process, for all processes. A UserError of the main process is
    raised on all.
    """
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = make()
        except UserError as error:
            if accelerator.num_processes > 1:
                broadcast_object_list([None, str(error)])
            raise
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    if found[1] is not None:
        raise ToldError(found[1])
    return found[0]
