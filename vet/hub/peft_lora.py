"""PEFT's LoRA in vet's terms: of a Linear, of a Conv2d, and of an nn.MultiheadAttention."""

import math
import re
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from vet.core.deltas import LowRank
from vet.core.low_rank import DoRA
from vet.core.modes import in_eval
from vet.core.starts import EVA
from vet.core.tuner import Tuner
from vet.errors import DataError, UserError
from vet.files import JsonObject
from vet.hub.peft_terms import Config, Delta, Deltas, Method, Tensors
from vet.registry import TUNERS

OTHERWISE = "Tune other places with at=…, or keep vet's own model folder, which holds every tuner."
# PEFT to this version adds the update of out_proj twice: once to the weight of out_proj, and once more in the
# merge of out_proj. A merge of the network does the same. A later version may add the update once.
ADDS_TWICE = '0.21.2'
# Of an nn.MultiheadAttention: a weight, vet's site, PEFT's module, and how often PEFT adds the update
PARTS = (('in_proj_weight', 'in_proj', '', 1), ('out_proj.weight', 'out_proj', 'base_layer.out_proj.', 2))


class AttentionUpdates:
    """The updates of one nn.MultiheadAttention, in the place of one delta.

    PEFT has an update of the whole in_proj_weight, and an update of out_proj.weight, without dropout. Both
    have one rank and one scale. If out_proj has another scale, its B is multiplied. An update that vet does
    not have counts as rank 0. Zeros in A and in B fill the smaller rank. They get no gradient, so a further
    training keeps them zero.
    """

    dropout = 0.0

    def __init__(self, path: str, attention: nn.MultiheadAttention):
        if attention.in_proj_weight is None:
            raise UserError(
                f'LoRA at {path!r} is in an nn.MultiheadAttention with separate weights of queries, keys and '
                f"values, which PEFT's LoRA does not take. {OTHERWISE}"
            )
        self.path = path
        self.updates: dict[str, Delta] = {}  # by the name of the weight

    def put(self, weight_name: str, delta: Delta) -> None:
        """Adds the update of one weight. UserError if PEFT cannot have the update."""
        if weight_name in self.updates:
            raise UserError(
                f'{self.path!r} has two updates of {weight_name!r}, but PEFT has one update of a weight. '
                'Give one LoRA of the sum of the ranks.'
            )
        if isinstance(delta, DoRA):
            raise UserError(
                f"LoRA at {self.path!r} has the variant 'dora', but PEFT has no DoRA of an "
                f'nn.MultiheadAttention. {OTHERWISE}'
            )
        self.updates[weight_name] = delta

    @property
    def scale(self) -> float:
        """PEFT's scale: that of in_proj_weight, if vet has this update."""
        weight_name, _, _, times = next(row for row in PARTS if row[0] in self.updates)
        return float(self.updates[weight_name].scale) / times

    def rank(self) -> int:
        return max(len(_factors(delta)[0]) for delta in self.updates.values())

    def tensors(self, weight: torch.Tensor) -> Tensors:
        """weight: in_proj_weight (3C, C)."""
        rank = self.rank()
        width = weight.shape[1]
        found: Tensors = {}
        for weight_name, _, module, times in PARTS:
            delta = self.updates.get(weight_name)
            if delta is None:
                A = weight.new_zeros(rank, width)
                B = weight.new_zeros(3 * width if weight_name == 'in_proj_weight' else width, rank)
            else:
                A, B = _factors(delta)
                ratio = delta.scale / (times * self.scale)
                B = B if ratio == 1 else ratio * B
                missing = rank - len(A)
                if missing:  # else A and B stay views, into which load_peft writes
                    A = F.pad(A, (0, 0, 0, missing))
                    B = F.pad(B, (0, missing))
            found |= {f'{module}lora_A.weight': A, f'{module}lora_B.weight': B}
        return found


def places(path: str, module: nn.Module) -> list[tuple[str, int]]:
    """vet's places for PEFT's LoRA of a module, and how often PEFT adds the update."""
    if isinstance(module, nn.MultiheadAttention):
        return [(f'{path}.{site}', times) for _, site, _, times in PARTS]
    return [(path, 1)]


def idle(network: nn.Module) -> list[str]:
    """The modules that PEFT changes without an effect: an attention reads the weight of its out_proj, and
    never calls out_proj.
    """
    named = network.named_modules()
    return [f'{path}.out_proj' for path, module in named if isinstance(module, nn.MultiheadAttention)]


def require_known(version: object, source: str) -> None:
    """DataError if a folder with LoRA of an nn.MultiheadAttention comes from a later version of PEFT."""
    numbers = re.match(r'(\d+)\.(\d+)\.(\d+)', str(version or '0.0.0'))
    known = tuple(map(int, ADDS_TWICE.split('.')))
    if not numbers or tuple(map(int, numbers.groups())) > known:
        raise DataError(
            f'{source!r} has LoRA of an nn.MultiheadAttention, and was written by PEFT {version}. vet knows '
            f'this LoRA of PEFT to {ADDS_TWICE}, which adds the update of out_proj twice. Merge the adapter '
            'with PEFT, and give the merged network to vet.'
        )


def _build(config: Config, paths: list[str], rank: int, alpha: float) -> Tuner:
    """LoRA or DoRA of PEFT. In PEFT, rsLoRA's scale alpha / sqrt(rank) also works for DoRA.

    Dropout acts only in training. vet's DoRA has no dropout.
    """
    is_dora = bool(config.get('use_dora'))
    return TUNERS.build(
        dict(
            type='LoRA',
            at=paths,
            rank=rank,
            alpha=alpha * math.sqrt(rank) if config.get('use_rslora') else alpha,
            variant='dora' if is_dora else 'plain',
            dropout=0.0 if is_dora else config.get('lora_dropout', 0.0),
        )
    )


def _factors(delta: Delta) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B without the scale. A kind that PEFT lacks is written as the product that it adds."""
    if type(delta) in (LowRank, DoRA, EVA):
        return delta.A, delta.placed(delta.B)
    with in_eval(delta):
        A, B = delta.factors()
    return A, B / delta.scale


def _rank(delta: Delta, weight: torch.Tensor) -> int:
    return delta.rank() if isinstance(delta, AttentionUpdates) else len(_factors(delta)[0])


def _tensors(delta: Delta, weight: torch.Tensor) -> Tensors:
    if isinstance(delta, AttentionUpdates):
        return delta.tensors(weight)
    ones = (1,) * (weight.dim() - 2)
    A, B = _factors(delta)
    tensors = {
        'lora_A.weight': A.view(len(A), *weight.shape[1:]),
        'lora_B.weight': B.view(len(weight), len(A), *ones),
    }
    if isinstance(delta, DoRA):
        if len(delta.m) != len(weight):
            raise UserError(
                'DoRA on parts of a weight cannot be written for PEFT, whose DoRA is of whole weights.'
            )
        tensors['lora_magnitude_vector'] = delta.m.view(*ones[:1], -1, *ones)
    return tensors


def _config(deltas: Deltas, tuners: list[Tuner]) -> JsonObject:
    is_dora = {isinstance(delta, DoRA) for delta in deltas.values()}
    if len(is_dora) > 1:
        raise UserError('some updates are DoRA and some plain LoRA; PEFT has one use_dora for all.')
    config: JsonObject = dict(
        use_dora=is_dora == {True}, lora_dropout=max(delta.dropout for delta in deltas.values()), bias='none'
    )
    attentions = [delta for delta in deltas.values() if isinstance(delta, AttentionUpdates)]
    if any('out_proj.weight' in attention.updates for attention in attentions):
        config['peft_version'] = ADDS_TWICE
        warnings.warn(
            f'the adapter has updates of out_proj in an nn.MultiheadAttention. PEFT to {ADDS_TWICE} adds '
            'these twice, so the adapter holds half of them. With a later PEFT, compare the outputs.',
            stacklevel=4,
        )
    return config


LORA = Method(_build, _tensors, _rank, 'lora_alpha', _config, ('use_dora', 'use_rslora', 'lora_dropout'))
