"""Weights between an untuned and a tuned model: WiSE-FT.

Wortsman et al. 2022, https://arxiv.org/abs/2109.01903: theta(alpha) = (1 - alpha) theta_0 + alpha theta_1.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from vet.core.caches import clear_caches
from vet.core.head import StartedHead
from vet.core.model import ImageClassifier
from vet.errors import UserError
from vet.hub.combine import combine


def refuse_alphas(*alphas: float) -> None:
    """UserError for an alpha outside 0..1."""
    for alpha in alphas:
        if not 0 <= alpha <= 1:
            raise UserError(f'alpha is {alpha}; allowed: 0 (the untuned model) to 1 (the tuned model).')


def save_between(
    folder: str | Path, output: str | Path, alpha: float, backbone: str | Path | None = None
) -> None:
    """Writes the model folder `output` with the weights of `interpolated`.

    UserError if a tuner's update is not linear in its tensors: no tensors of such a tuner give these weights.
    """
    refuse_alphas(alpha)

    def move_head(model: ImageClassifier) -> None:
        state = model.head.state_dict()
        for name, start in _starts(model).items():
            state[name].copy_(_between(start, state[name], alpha))

    combine([folder], output, [alpha], 'sum', head=0, backbone=backbone, finish=move_head)


@contextmanager
def interpolated(model: ImageClassifier, alpha: float) -> Iterator[None]:
    """Within this context, the weights of the model are (1 - alpha) theta_0 + alpha theta_1.

    theta_1 is the model. theta_0 is the frozen backbone. If the head knows its start (Text), theta_0 has the
    head of the start. Another head stays as it is. Afterwards, the model is bit for bit as before.
    alpha: 0..1. UserError if a tuner edits the flow through the network, because no weight holds that.
    """
    refuse_alphas(alpha)
    network = model.backbone.network
    for tuner in reversed(list(model.tuners)):
        tuner.rest()
    untuned = {name: value.detach().clone() for name, value in network.state_dict().items()}
    for tuner in model.tuners:
        tuner.resume()
    model.merge()
    if alpha == 1:  # the model itself, without the rounding of merged weights
        model.unmerge()
        yield
        return
    starts = _starts(model)
    tensors = network.state_dict() | {f'head.{name}': model.head.state_dict()[name] for name in starts}
    untuned |= {f'head.{name}': value for name, value in starts.items()}
    kept = {name: value.detach().clone() for name, value in tensors.items()}
    try:
        with torch.no_grad():
            for name, value in tensors.items():
                if value.is_floating_point():
                    value.copy_(_between(untuned[name], kept[name], alpha))
        clear_caches(network.modules())
        yield
    finally:
        with torch.no_grad():
            for name, value in tensors.items():
                value.copy_(kept[name])
        model.unmerge()


def _starts(model: ImageClassifier) -> Mapping[str, torch.Tensor]:
    """The tensors of the head before the training. Empty for a head that does not know its start."""
    return model.head.starts() if isinstance(model.head, StartedHead) else {}


def _between(start: torch.Tensor, end: torch.Tensor, alpha: float) -> torch.Tensor:
    return (1 - alpha) * start.double() + alpha * end.double()
