"""Writes the reweights of attached tuners into the plain weights of their network, and takes them out again.

Used by the classes that hold tuners: core.model and core.tuned_network.
"""

from collections.abc import Iterable

import torch
from torch import nn

from vet.core.backbone import FrozenNetwork, merged_error
from vet.core.caches import clear_caches
from vet.core.edits import places_of
from vet.core.modes import in_eval
from vet.core.reweight import Merged, Reweight, merge_reweights, unmerge_reweights
from vet.core.shadow import parameter_or_none
from vet.core.tuner import Tuner
from vet.errors import UserError
from vet.torch_private import map_tensors


def merge_tuners(frozen: FrozenNetwork, tuners: Iterable[Tuner]) -> list[Merged]:
    """Merges all reweights. `unmerge_tuners` needs the result. Of a merged network: does nothing.

    UserError if a tuner edits the flow through the network, because no weight can hold that. After an error,
    nothing is merged.
    """
    tuners = list(tuners)
    for tuner in tuners:
        if not tuner.mergeable:
            raise UserError(
                f'{type(tuner).__name__} cannot be merged: it changes inputs or outputs of modules, and no '
                'weights.'
            )
    if frozen.is_merged:
        return []
    edits = [edit for tuner in tuners for edit in tuner._edits]
    _refuse_tied(frozen.network, [edit for edit in edits if isinstance(edit, Reweight)])
    hosts = {id(edit.host): edit.host for edit in edits if isinstance(edit, Reweight)}
    merged: list[Merged] = []
    try:
        with in_eval(nn.ModuleList(tuners)):
            for host in hosts.values():
                merged.append(merge_reweights(host))
    except BaseException:
        unmerge_tuners(frozen, merged)
        raise
    frozen.is_merged = True
    clear_caches(frozen.network.modules())
    return merged


def _refuse_tied(network: nn.Module, edits: Iterable[Reweight]) -> None:
    """UserError if a weight to be written stands at several places of the network."""
    places = places_of(network)
    for edit in edits:
        if len(places.get(id(parameter_or_none(edit.host, edit.weight_name)), ())) > 1:
            raise UserError(
                f'{edit.weight_name!r} of {type(edit.host).__name__} cannot be merged: the weight is tied to '
                'another place of the network, which would change too. Keep the tuners attached.'
            )


def unmerge_tuners(frozen: FrozenNetwork, merged: list[Merged]) -> None:
    """Undoes `merge_tuners`, bit for bit. Empties `merged`."""
    while merged:
        unmerge_reweights(merged.pop())
    frozen.is_merged = False
    clear_caches(frozen.network.modules())


def refuse_training(frozen: FrozenNetwork, training: bool) -> None:
    """UserError if a merged network would train."""
    if frozen.is_merged and training and torch.is_grad_enabled():
        raise merged_error('trained: the tuners would get no gradient')


def refuse_backward(frozen: FrozenNetwork, given: object, output: object) -> None:
    """While a network is merged: a backward pass from `output` raises a UserError.

    given: the input. If a tensor of the input needs a gradient, nothing is refused: the gradient may show
        where the network looks.
    """
    if frozen.is_merged and not any(tensor.requires_grad for tensor in _tensors(given)):
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(refuse_gradient)


def _tensors(value: object) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tensors(found.append, value)
    return found


def refuse_gradient(gradient: torch.Tensor) -> None:
    """A hook of a tensor: refuses its gradient."""
    raise merged_error('trained: the tuners would get no gradient')
