"""Method: one method of PEFT in vet's terms."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vet.core.tuner import Tuner
from vet.files import JsonObject

Config = JsonObject
Tensors = dict[str, torch.Tensor]
Delta = Any  # of the tuner of a method, whose tensors only the functions of the method name
Deltas = Mapping[str, Delta]  # {module path: delta}


@dataclass(frozen=True)
class Method:
    """One method of PEFT.

    build(config, paths, rank, alpha): makes the tuner, at the modules of these paths.
    tensors(delta, weight): views of a delta's tensors, with their names and shapes in PEFT.
    rank(delta, weight): the rank, if the scale is alpha / rank.
    alpha: the name of the setting alpha.
    config(deltas, tuners): settings to write.
    reads: the settings, beside rank and alpha, that change the computation.
    takes_convolutions: whether PEFT computes the same as vet for convolutions.
    fixed(delta): tensors that a folder may hold, by the ends of their names, which vet makes itself.
    """

    build: Callable[[Config, list[str], int, float], Tuner]
    tensors: Callable[[Delta, torch.Tensor], Tensors]
    rank: Callable[[Delta, torch.Tensor], int] | None = None
    alpha: str = 'alpha'
    config: Callable[[Deltas, list[Tuner]], JsonObject] = lambda deltas, tuners: {}
    reads: tuple[str, ...] = ()
    takes_convolutions: bool = True
    fixed: Callable[[Delta], Tensors] = lambda delta: {}


def paths_pattern(paths: list[str]) -> str:
    """A regular expression of exactly these paths. PEFT takes the names of a list for the ends of paths."""
    return '|'.join(map(re.escape, paths))
