"""One forward for the images of several sets of tuners: each edit acts on the images of its own set.

core/tuned_model.py and core/tuned_network.py use this file.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from vet.core.delta import Delta, declared
from vet.core.edits import FlowEdit, Thaw
from vet.core.reweight import Reweight, all_split
from vet.core.site_map import SiteMap

# of a mixed forward: the number of images, and {set: the slice of its images}
_ROWS: ContextVar[tuple[int, dict[str, slice]]] = ContextVar('_ROWS')


class CannotMix(Exception):
    """An edit does not act on each image by itself."""


def rows_by_name(names: Sequence[str]) -> dict[str, list[int]]:
    """{name: the places of the images for which the name stands}."""
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        rows.setdefault(name, []).append(i)
    return rows


@contextmanager
def mixed(rows: Mapping[str, list[int]]) -> Iterator[tuple[list[int], dict[str, slice]]]:
    """Run a forward within. Each edit that `put` has placed acts on the images of its set.

    rows: {set: the places of its images}.
    Gives the order in which the forward must get the images, so that the images of a set are neighbours, and
    {set: the slice of its images in this order}.
    """
    order = [image for images in rows.values() for image in images]
    slices = {}
    start = 0
    for name, images in rows.items():
        slices[name] = slice(start, start + len(images))
        start += len(images)
    token = _ROWS.set((len(order), slices))
    try:
        yield order, slices
    finally:
        _ROWS.reset(token)


def put(
    name: str, edits: Sequence[Thaw | Reweight | FlowEdit], owner: nn.Module, sites: SiteMap
) -> list[Reweight | FlowEdit]:
    """Places the edits of the set `name` on the network of `sites`, for the images of this set.

    edits: those of the set, on the network `owner`, which has the modules of the network of `sites`.
    Returns the edits that were placed. CannotMix if an edit does not act on each image by itself. Then no
    edit is placed.
    """
    paths = {id(module): path for path, module in owner.named_modules()}
    placed: list[Reweight | FlowEdit] = []
    thaws = [edit for edit in edits if isinstance(edit, Thaw)]
    others = [edit for edit in edits if not isinstance(edit, Thaw)]
    hosts = list({id(edit.module): edit.module for edit in thaws}.values())
    try:
        for host in hosts:
            if any(edit.host is host for edit in others if isinstance(edit, Reweight)):
                raise CannotMix
            of_host = [edit for edit in thaws if edit.module is host]
            placed.append(_put_thawed(name, of_host, paths[id(host)], sites))
        placed += [_put(name, edit, paths, sites) for edit in others]
    except CannotMix:
        take_off(placed)
        raise
    return placed


def take_off(placed: list[Reweight | FlowEdit]) -> None:
    """Undoes what `put` has placed."""
    while placed:
        placed.pop().undo()


def _put(
    name: str, edit: Reweight | FlowEdit, paths: Mapping[int, str], sites: SiteMap
) -> Reweight | FlowEdit:
    path = paths[id(edit.host if isinstance(edit, Reweight) else edit.module)]
    module = sites.network.get_submodule(path)
    if isinstance(edit, FlowEdit):
        call = sites.calls[path]
        if edit.argument != call.argument or edit.method:  # the rows of all images share it, or the result
            raise CannotMix
        flows = _Flows(name, edit.delta, call.batch)
        if edit.is_before:
            return FlowEdit.before(module, flows, edit.argument)
        return FlowEdit.after(module, flows, edit.place, edit.argument)
    if not declared(edit.delta).splits(edit.host):
        raise CannotMix
    splits = _Splits(name, edit.delta, sites.calls[path].batch)
    made = Reweight(module, edit.weight_name, edit.bias_name, splits)
    made.apply()
    if not all_split(module):
        made.undo()
        raise CannotMix
    return made


def _put_thawed(name: str, thaws: Sequence[Thaw], path: str, sites: SiteMap) -> FlowEdit:
    """The module's output, for the images of the set, comes from the thawed values.

    This module computes twice. So only a module behind all blocks mixes, such as a classifier. The thaws must
    rest.
    """
    module = sites.network.get_submodule(path)
    takes = inspect.signature(type(module).forward).parameters
    is_last = path in sites.calls and sites.depth(path) == len(sites.blocks)
    if not is_last or len(takes) != 2 or 'forward' in vars(module):
        raise CannotMix
    if any(thaw.tied or thaw.resting is None for thaw in thaws):
        raise CannotMix
    return FlowEdit.after(module, _Flows(name, _Thawed(module, thaws), sites.calls[path].batch))


def in_order(outputs: Sequence[Any], order: torch.Tensor) -> Any:
    """One output from the outputs for several parts of a batch. order: the places of the images in the parts.

    Tensors with an axis of images, and lists with an entry for each image, are put in this order.
    """
    first = outputs[0]
    if isinstance(first, torch.Tensor):
        by_image = first.dim() and sum(map(len, outputs)) == len(order)
        return torch.cat(list(outputs))[order.to(first.device)] if by_image else first
    if isinstance(first, dict):
        parts = {}
        for key in first:
            parts[key] = in_order([out[key] for out in outputs], order)
        return parts if type(first) is dict else type(first)(**parts)
    if isinstance(first, list) and first and isinstance(first[0], dict):  # of detection networks
        entries = [entry for out in outputs for entry in out]
        return [entries[i] for i in order.tolist()]
    if isinstance(first, tuple | list):
        joined = [in_order(each, order) for each in zip(*outputs)]
        return type(first)(*joined) if hasattr(first, '_fields') else type(first)(joined)
    return first


class _OnOwn(Delta):
    """A delta that acts only on the rows of its set in a mixed batch. windows: rows of an image at its
    module.
    """

    def __init__(self, name: str, delta: nn.Module, windows: int):
        super().__init__()
        self.name = name
        self.delta = delta
        self.windows = windows

    def rows(self, x: torch.Tensor, y: torch.Tensor) -> slice:
        images, of_sets = _ROWS.get()
        if len(x) != images * self.windows or len(y) != len(x):
            raise CannotMix
        rows = of_sets.get(self.name, slice(0, 0))
        return slice(rows.start * self.windows, rows.stop * self.windows)


class _Flows(_OnOwn):
    """delta(x) before a module, or delta(x, y) after the module, for the rows of the set."""

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        whole = x if y is None else y
        rows = self.rows(x, whole)
        if rows.start == rows.stop:
            return whole
        edited = self.delta(x[rows]) if y is None else self.delta(x[rows], y[rows])
        if edited.shape != whole[rows].shape:
            raise CannotMix
        return torch.cat([whole[: rows.start], edited.to(whole.dtype), whole[rows.stop :]])


class _Splits(_OnOwn):
    """The addition of a reweight to the module's output, for the rows of the set."""

    def forward(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """A module that needs the whole weight cannot have one weight for each image."""
        raise CannotMix

    def splits(self, module: nn.Module) -> bool:
        return True

    def split(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Writes into y. y is the module's fresh output, which nobody else holds."""
        rows = self.rows(x, y)
        if rows.start < rows.stop:
            edited = declared(self.delta).split(module, x[rows], y[rows])
            if edited.data_ptr() != y[rows].data_ptr():
                y[rows] = edited
        return y


class _Thawed(nn.Module):
    """The module's output with the values of thaws, which rest."""

    thawed: nn.Module

    def __init__(self, module: nn.Module, thaws: Sequence[Thaw]):
        super().__init__()
        self.__dict__['thawed'] = module  # no submodule
        self.thaws = thaws

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for thaw in self.thaws:
            thaw.resume()
        try:
            return type(self.thawed).forward(self.thawed, x)
        finally:
            for thaw in self.thaws:
                thaw.rest()
