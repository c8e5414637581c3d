"""The signature of a network's forward, for the forward of the module around the network.

The Trainer of transformers reads the names of inputs and labels from the signature of the module's class.
So a tuned network has a class for each class of networks.
"""

import inspect
from functools import cache
from typing import Any

from torch import nn

Kind = Any  # a class of modules; mypy does not take a class of nn.Module for a key of a cache


@cache
def class_with_signature(kind: Kind, network: Kind) -> Kind:
    """A subclass of `kind` with the name of `kind`, whose `forward` has the signature of `network.forward`.

    `kind` itself, if Python cannot read the signature.
    """
    try:
        signature = inspect.signature(network.forward)
    except (TypeError, ValueError):
        return kind

    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        return kind.forward(self, *args, **kwargs)

    forward.__doc__ = kind.forward.__doc__
    vars(forward)['__signature__'] = signature
    named = dict(__module__=kind.__module__, __qualname__=kind.__qualname__, __doc__=kind.__doc__)
    return type(
        kind.__name__, (kind,), dict(named, forward=forward, __reduce_ex__=_reduced, made_of=(kind, network))
    )


def _reduced(self: Any, protocol: Any) -> tuple[object, ...]:
    """For pickle and copies: the class is made again."""
    _, _, *rest = tuple(nn.Module.__reduce_ex__(self, protocol))
    return _new, self.made_of, *rest


def _new(kind: Kind, network: Kind) -> nn.Module:
    made = class_with_signature(kind, network)
    return made.__new__(made)
