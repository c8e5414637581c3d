"""Delta: the contract of the small trainable module that a tuner places at one site.

A plain nn.Module with `forward` keeps the contract. A Delta may declare more. The defaults below are those of
a plain module. Imports nothing of vet. Every room may import it.
"""

import torch
from torch import nn


class Delta(nn.Module):
    """The new weight and bias of a layer, or an edit of the flow through a module.

    forward(weight, bias) -> (weight, bias): for `Tuner.reweight`. weight (out, in, …), bias (out,) or None.
    forward(x) -> x: for `Tuner.before`.
    forward(x, y) -> y: for `Tuner.after`. x is the module's input, y the module's output.

    The names below are optional. Subclasses set them.
    """

    # For a delta that reweights -----------------------------------------------------------------------------

    dropout: float = 0.0
    """The share of the input that `split` drops in training. A whole weight cannot drop inputs. vet asks for
    this when a delta is placed.
    """

    reads_weight: bool = True
    """Whether `split` computes from the weight itself. In a bf16 training, such a weight stays in float32,
    because rounding the weight would change the update. vet asks for this before the first step.
    """

    linear_in: tuple[str, ...] = ()
    """The names in `state_dict` in which the whole update is linear, for any weight. Linear updates can be
    summed. `combine` asks for this. A subclass does not inherit these names, because it may compute something
    else.
    """

    bound_to_weight: tuple[str, ...] = ()
    """The names of parameters that mean something only beside this frozen weight. Tasks never share such
    parameters. vet asks for this when a model of several tasks is put together.
    """

    has_routes: bool = False
    """Whether `split` adds B A x by core.products.add_product, with A and B of `factors`. Then a training may
    measure the routes of the product. engine/fast/routes.py asks for this.
    """

    def splits(self, module: nn.Module) -> bool:
        """Whether `split` is right for this module. vet asks when a delta is placed, and in each forward."""
        return False

    def split(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The output of the reweighted module, from its input x and its output y with the old weight.

        x (…, in) and y (…, out) of a Linear, x (B, in, H, W) and y (B, out, H', W') of a convolution. May
        write into y. With `split`, vet forms neither the new weight nor the gradient of the whole weight.
        """
        if self.turns_input:
            return type(module).forward(module, self.turned(module, x))
        raise NotImplementedError(
            f'{type(self).__name__} says that it splits, so it must write split(module, x, y)'
        )

    turns_input: bool = False
    """Whether `turned` gives an input for which the old weight computes what the new weight computes for x.

    vet asks in each forward.
    """

    def turned(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """The input in place of x, of the shape of x. `split` calls it, if `turns_input`, in each forward."""
        raise NotImplementedError(f'{type(self).__name__} must write turned(module, x)')

    def adds_product(self) -> bool:
        """Whether `split` now adds B A x and nothing else, with A and B of `factors`.

        Then several deltas can be one product. vet asks in each forward.
        """
        return False

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A (k, in) and B (out, k) of the product that the delta adds, with all scales.

        vet asks in each forward if `adds_product()` is true, once before a training if `has_routes`, and when
        LoRA is written as a folder of PEFT.
        """
        raise NotImplementedError(f'{type(self).__name__} must write factors()')

    # For a delta that acts before or after a module ---------------------------------------------------------

    by_token: bool = False
    """Whether the delta computes each token by itself. Then the delta may get only the first tokens.
    train.shortcuts asks for this, because the last block then computes only the class token.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.linear_in = cls.__dict__.get('linear_in', ())


_PLAIN = Delta()


def declared(delta: nn.Module) -> Delta:
    """The declarations of a delta: the delta itself, or the defaults for a plain module."""
    return delta if isinstance(delta, Delta) else _PLAIN
