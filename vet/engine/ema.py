"""The exponential moving average of the trained tensors alone; the frozen backbone needs none."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class Average:
    """a <- decay a + (1 - decay) t after each step, for every floating-point tensor t of `trained`; others are copied."""

    def __init__(self, trained: Mapping[str, torch.Tensor], decay: float):
        self.decay = decay
        self.state = {name: tensor.detach().clone() for name, tensor in trained.items()}

    @torch.no_grad()
    def update(self, trained: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in trained.items():
            if tensor.is_floating_point():
                self.state[name].lerp_(tensor, 1 - self.decay)
            else:
                self.state[name].copy_(tensor)


@contextmanager
def swapped(trained: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor] | None) -> Iterator[None]:
    """Within, `trained` holds `values` (nothing happens for None); after it, what it held before, bit for bit."""
    if values is None:
        yield
        return
    kept = {name: tensor.detach().clone() for name, tensor in trained.items()}
    copy_into(trained, values)
    try:
        yield
    finally:
        copy_into(trained, kept)


@torch.no_grad()
def copy_into(trained: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in trained.items():
        tensor.copy_(values[name])
