"""Delta: the contract of the small trainable module that a tuner places at one site.

A plain nn.Module with `forward` keeps the contract. A Delta may declare more, and each default below says
what a plain module is taken for. Imports nothing of vet; every room may import it.
"""

import torch
from torch import nn


class Delta(nn.Module):
    """The new weight and bias of a layer, or what is added to what flows through a module.

    forward(weight, bias) -> (weight, bias): of a delta that `Tuner.reweight` places. weight (out, in, …),
    bias (out,) or None.
    forward(x) -> x: of a delta that `Tuner.before` places.
    forward(x, y) -> y: of a delta that `Tuner.after` places. x is the module's input, y the module's output.

    The names below are what a delta may declare beside `forward`. Subclasses set them.
    """

    # Of a delta that reweights ------------------------------------------------------------------------------

    dropout: float = 0.0
    """The share of the input that `split` drops in training. A whole weight cannot drop inputs: asked
    when a delta is placed.
    """

    reads_weight: bool = True
    """Whether `split` computes from the weight itself. A weight that is read stays in float32 in a bf16
    training, whose rounding would change the update. Asked before the first step.
    """

    linear_in: tuple[str, ...] = ()
    """The names in `state_dict` in which the whole update is linear, whatever the weight is. Updates
    that are linear can be summed: asked by `combine`. A subclass may compute something else, so that it
    inherits () and declares its own.
    """

    bound_to_weight: tuple[str, ...] = ()
    """The names of parameters that mean something only beside this frozen weight. Tasks never share
    them: asked when a model of several tasks is put together.
    """

    def splits(self, module: nn.Module) -> bool:
        """Whether `split` holds for this module. Asked when a delta is placed and in each forward."""
        return False

    def split(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The output of the reweighted module, from its input x and its output y with the old weight. May
        write into y.

        x (…, in) and y (…, out) of a Linear, x (B, in, H, W) and y (B, out, H', W') of a convolution. Spares
        the new weight and the gradient of the whole weight.
        """
        raise NotImplementedError(
            f'{type(self).__name__} says that it splits, so it must write split(module, x, y)'
        )

    def adds_product(self) -> bool:
        """Whether `split` now adds B A x and nothing else, with A and B of `factors`. Then several deltas can
        be one product. Asked in each forward."""
        return False

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A (k, in) and B (out, k), with whatever scales them, of a delta that adds a product."""
        raise NotImplementedError(f'{type(self).__name__} must write factors()')

    # Of a delta that acts before or after a module ----------------------------------------------------------

    by_token: bool = False
    """Whether the delta computes each token by itself. Then it may be given the first tokens alone:
    asked by the lean mode, in which the last block computes only the class token.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.linear_in = cls.__dict__.get('linear_in', ())


_PLAIN = Delta()


def declared(delta: nn.Module) -> Delta:
    """What a delta declares: the delta itself, or the defaults for a plain module."""
    return delta if isinstance(delta, Delta) else _PLAIN
