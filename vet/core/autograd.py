"""AutogradContext: the type of `ctx`, the first argument of torch's autograd functions. torch has no type.

Used by core.products and by the tricks for speed in engine/fast.
"""

from typing import Protocol

import torch


class AutogradContext(Protocol):
    """The memory of one call: the forward saves tensors there, and the backward reads them.

    A function that also keeps other values declares them in a subclass.
    """

    saved_tensors: tuple[torch.Tensor, ...]
    needs_input_grad: tuple[bool, ...]  # one for each argument of the forward

    def save_for_backward(self, *tensors: torch.Tensor | None) -> None: ...

    def mark_dirty(self, *tensors: torch.Tensor) -> None: ...
