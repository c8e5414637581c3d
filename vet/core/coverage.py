"""Computes how much of a network the edits of a tuner reach: weights, attention layers, norms, blocks.

A tuner that trains 2 of 20 attentions runs well and learns little. So each share is computed from the whole
network.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vet.core.edits import FlowEdit, Thaw
from vet.core.flow import WEIGHTED, around
from vet.core.inner import attentions
from vet.core.norms import is_norm
from vet.core.reweight import Reweight
from vet.core.site_map import AT, OR, SiteMap

LOW = 0.5  # a role that reaches a smaller share is told
BEHIND = 0.25  # where the last blocks train, a larger share of the weights behind them is told


@dataclass(frozen=True)
class Coverage:
    """attentions, norms, blocks: those that are reached, and those that are not. A block is reached if a part
    of it is.

    weights: the reached share of all numbers in weights, 0 to 1.
    """

    attentions: tuple[list[str], list[str]]
    weights: float
    norms: tuple[list[str], list[str]]
    blocks: tuple[list[str], list[str]]

    def __str__(self) -> str:
        parts = (('attention layers', self.attentions), ('norms', self.norms), ('blocks', self.blocks))
        counted = [
            f'{len(reached)} of {len(reached + rest)} {name}'
            for name, (reached, rest) in parts
            if reached + rest
        ]
        return ', '.join([f'{percent(self.weights)} of the weights', *counted])


def percent(share: float) -> str:
    """A share as text: '25 %', '1.3 %'"""
    return f'{100 * share:.{1 if 0 < share < 0.1 else 0}f} %'


def coverage(sites: SiteMap, paths: Iterable[str]) -> Coverage:
    """The part of the network that `paths` reach.

    This is all below the paths, and the attention layers, norms and blocks around the paths.
    paths: of modules, of packed projections ('….in_proj') or of parameters.
    """
    chosen = set(paths)
    holders = {holder for path in chosen for holder in around(path)}

    def is_reached(name: str) -> bool:
        return name in chosen or not chosen.isdisjoint(around(name))

    def split(names: Iterable[str]) -> tuple[list[str], list[str]]:
        found: tuple[list[str], list[str]] = ([], [])
        for name in names:
            found[not (is_reached(name) or name in holders)].append(name)
        return found

    numbers = _weights(sites)
    reached = sum(count for name, count in numbers.items() if is_reached(name))
    layers = (name for name, _ in attentions(sites.network, sites.calls))
    norms = (name for name, module in sites.network.named_modules() if is_norm(module))
    share = reached / max(sum(numbers.values()), 1)
    return Coverage(split(layers), share, split(norms), split(sites.blocks))


def reaches_features(sites: SiteMap, paths: Iterable[str]) -> bool:
    """Whether one of `paths` lies outside of the network's kept classifier."""
    heads = set(sites.roles().get('head', ()))
    return any(heads.isdisjoint((path, *around(path))) for path in paths)


def share_behind_blocks(sites: SiteMap) -> float:
    """The share of the numbers in weights that lies behind the last block, 0 to 1. Without blocks: 0."""
    if not sites.blocks:
        return 0.0
    last = sites.calls[sites.blocks[-1]].order
    blocks = set(sites.blocks)
    numbers = _weights(sites)
    behind = 0
    for name, count in numbers.items():
        module = name.removesuffix('.in_proj')
        host = module if module in sites.calls else sites.around(module)
        if sites.calls[host].order > last and blocks.isdisjoint((name, *around(name))):
            behind += count
    return behind / max(sum(numbers.values()), 1)


def shortfalls(sites: SiteMap, at: str | Sequence[str], thaws: bool) -> Iterator[str]:
    """Sentences about places that a tuner at `at` misses, although `at` seems to name them all.

    thaws: whether the tuner trains the network's own parameters.
    """
    roles = sites.roles()
    for place in sites.places(at):
        parsed = AT.fullmatch(place)
        role = parsed['role'] if parsed else ''
        if role not in roles:
            continue
        if parsed and parsed['slice']:
            behind = share_behind_blocks(sites)
            if thaws and role == 'block' and behind > BEHIND:
                yield (
                    f'{place!r} are the last blocks, but {percent(behind)} of the weights of {sites.family} '
                    'lie behind the last block and stay frozen. Name parameters instead, as Partial does '
                    'with names=….'
                )
        elif text := _shortfall(sites, role, roles[role]):
            yield text


def stand_ins(sites: SiteMap, at: str | Sequence[str]) -> Iterator[str]:
    """Of places such as 'mlp or block': the place that counts, where the network lacks the first."""
    for place in [at] if isinstance(at, str) else at:
        first = place.partition(OR)[0]
        (taken,) = sites.places(place)
        if taken != first:
            yield f'{taken!r}, because {sites.family} has no {first!r}'


def report(tuners: Iterable[Any]) -> tuple[list[str], list[str]]:
    """Lines that say how much each attached tuner reaches, and sentences about the places that they miss.

    Tuners of several tasks that reach the same have one line. A tuner that trains only the classifier has
    no line, because the shares are those of the network without its classifier.
    """
    attached = [tuner for tuner in tuners if not tuner.head_only and tuner.reaches_features()]
    lines = dict.fromkeys(f'{_acts(tuner)} reaches {tuner.coverage()}' for tuner in attached)
    missed = dict.fromkeys(text for tuner in attached for text in tuner.shortfalls())
    return list(lines), list(missed)


def _acts(tuner: Any) -> str:
    places = ' and '.join(tuner.stand_ins())
    return f'{type(tuner).__name__} acts at {places}, and' if places else type(tuner).__name__


def _shortfall(sites: SiteMap, role: str, names: list[str]) -> str:
    reached = coverage(sites, names)
    advice = "Choose further places with at=[…]: roles, or paths of modules, such as '*.query'."
    of_layers = {
        'attn': ('attention layers', reached.attentions),
        'norm': ('norms', reached.norms),
        'mlp': ('blocks', reached.blocks),
    }
    kind = role.partition('.')[0]
    if kind in of_layers:
        what, (found, rest) = of_layers[kind]
        if len(found) < LOW * len(found + rest):
            first = f'{rest[0]!r} ({type(sites.network.get_submodule(rest[0])).__name__})'
            return (
                f'{role!r} reaches {len(found)} of the {len(found + rest)} {what} of {sites.family}; the '
                f'first of the others is {first}. {advice}'
            )
    blocks = coverage(sites, sites.blocks)
    if kind in ('block', 'mlp', 'weight') and sites.blocks and blocks.weights < LOW:
        return (
            f'{role!r} lies within the {len(sites.blocks)} blocks that were found in {sites.family}, and '
            f'they hold {percent(blocks.weights)} of the weights. {advice}'
        )
    return ''


def _weights(sites: SiteMap) -> dict[str, int]:
    """The weights of all Linear layers, convolutions and packed projections: how many numbers, by path.

    The weights of a kept classifier are left out.
    """
    heads = set(sites.roles().get('head', ()))
    found = {}
    for name, module in sites.network.named_modules():
        if not heads.isdisjoint((name, *around(name))):
            continue
        weight = getattr(module, 'weight', None)
        if isinstance(module, WEIGHTED) and isinstance(weight, torch.Tensor):
            found[name] = weight.numel()
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            found[f'{name}.in_proj'] = module.in_proj_weight.numel()
    return found


def paths_of(edits: Iterable[Thaw | Reweight | FlowEdit], network: nn.Module) -> list[str]:
    """The paths of what edits change: of parameters, or of modules whose input or output is edited."""
    names = {id(module): name for name, module in network.named_modules()}
    return [_path(edit, names) for edit in edits]


def _path(edit: Thaw | Reweight | FlowEdit, names: dict[int, str]) -> str:
    if isinstance(edit, FlowEdit):
        return names[id(edit.module)]
    owner, name = (edit.module, edit.name) if isinstance(edit, Thaw) else (edit.host, edit.weight_name)
    path = f'{names[id(owner)]}.{name}'.lstrip('.')
    return path.removesuffix('.weight').removesuffix('_weight')
