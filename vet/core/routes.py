"""Routes: the ways to compute the low-rank update of a layer. They give equal numbers, up to rounding.

This file owns the choice between them. core.products reads the choice. Only engine/fast/routes.py makes a
choice: a training measures the routes, or takes those of `train.routes`. Everything else takes the rule of
core.products: evaluation, `pipeline`, `vet.tune` in a user's own loop.

| route | computes |
|---|---|
| fused | one product with W + B A; only in float32, because less precision rounds a small update away |
| split | W x, then B A x is written into the output; no tensor of the output's size is made |
| convolved | as fused or split; the gradient of B of a convolution is that of a 1 x 1 convolution |
| plain | W x, B A x and their sum, as PEFT does |

The route `fused` changes no weight of the module. An older vet called this route `merged`.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

FUSED, SPLIT, CONVOLVED, PLAIN = ROUTES = ('fused', 'split', 'convolved', 'plain')
KEY = '_route'  # in a module's __dict__


def chosen_route(module: nn.Module) -> str | None:
    """The route that a training chose for the module. None: the rule decides, as in each evaluation."""
    return module.__dict__.get(KEY) if torch.is_grad_enabled() else None


def choose_routes(modules: Iterable[tuple[str, nn.Module]], routes: Mapping[str, str]) -> None:
    """Gives each named module its route. A module without an entry takes the rule again."""
    for name, module in modules:
        module.__dict__.pop(KEY, None)
        if name in routes:
            module.__dict__[KEY] = routes[name]
