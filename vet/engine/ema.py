"""The exponential moving average of the trained tensors. The frozen backbone needs none."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class Average:
    """a <- d a + (1 - d) t after step s (0, 1, …), with d = min(decay, (1 + s) / (10 + s)).

    t is every floating-point tensor of `trained`. Other tensors are copied. d is smaller in the first steps,
    so the average forgets the untrained start: at step s it reaches back over about s / 9 steps at most.
    """

    def __init__(self, trained: Mapping[str, torch.Tensor], decay: float):
        self.decay = decay
        self.state = {name: tensor.detach().clone() for name, tensor in trained.items()}

    @torch.no_grad()
    def update(self, trained: Mapping[str, torch.Tensor], step: int) -> None:
        """step: the number of the step, from 0. A resumed run knows this number too."""
        decay = decay_at(self.decay, step)
        for name, tensor in trained.items():
            if tensor.is_floating_point():
                self.state[name].lerp_(tensor, 1 - decay)
            else:
                self.state[name].copy_(tensor)


def decay_at(decay: float, step: int) -> float:
    """The decay after step number `step`, from 0."""
    return min(decay, (1 + step) / (10 + step))


def shortened(decay: float, steps: int) -> str | None:
    """A warning if the average of `decay` reaches back over more steps than the run has. Otherwise None."""
    reach = 1 / (1 - decay)
    last = decay_at(decay, max(steps, 1) - 1)
    if round(reach) <= steps:
        return None
    return (
        f'train.ema={decay:g} averages about {reach:,.0f} steps, but the run has {steps:,}: the decay rises '
        f'with the steps, to {last:.4g} at the end, which averages about {1 / (1 - last):,.0f}'
    )


@contextmanager
def swapped(trained: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor] | None) -> Iterator[None]:
    """Within this context, `trained` holds `values`. Afterwards, it holds its old values, bit for bit.

    None as `values` changes nothing.
    """
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
