"""Writes the reweights of attached tuners into the plain weights of their network, and takes them out again.

Merged is a state of a tuner and of a layer. Each layer is a stack: the reweights of a model can be merged if
no reweight that stays acts before them, and a merge is undone before the merges below it.

Used by the classes that hold tuners: core.model and core.tuned_network.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from vet.core.backbone import TRAINED, FrozenNetwork, merged_error
from vet.core.caches import clear_caches
from vet.core.edits import MERGED, Thaw, places_of
from vet.core.modes import in_eval
from vet.core.reweight import Reweight, give_reweights, new_tensors, reweights_of, take_reweights
from vet.core.shadow import Tensors, parameter_or_none, put_tensors
from vet.core.tuner import Tuner
from vet.errors import UserError
from vet.torch_private import is_in_backward, map_tensors


@dataclass(eq=False)
class Merged:
    """The reweights and tensors that a merge took from a layer, and the tensors that it wrote."""

    host: nn.Module
    edits: list[Reweight]
    originals: Tensors
    written: Tensors
    types: dict[str, torch.dtype]  # of the tensors that the merge wrote
    thaws: list[Thaw]  # of the tensors in `originals` that train

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, whose parameters have no marks."""
        self.__dict__.update(state)
        for tensor in self.written.values():
            if tensor is not None:
                _mark(tensor)


def _mark(tensor: torch.Tensor) -> None:
    vars(tensor)[MERGED] = True


def merge_tuners(frozen: FrozenNetwork, tuners: Iterable[Tuner]) -> list[Merged]:
    """Merges all reweights of `tuners`. `unmerge_tuners` needs the result. Of merged tuners: does nothing.

    UserError if a tuner edits the flow through the network, because no weight can hold that, and if another
    model edits the same weights first. After an error, nothing is merged.
    """
    tuners = list(tuners)
    for tuner in tuners:
        if not tuner.mergeable:
            raise UserError(
                f'{type(tuner).__name__} cannot be merged: it changes inputs or outputs of modules, and no '
                'weights.'
            )
        if tuner.is_resting:
            raise UserError(
                f'{type(tuner).__name__} cannot be merged, because it rests. Call its resume() first.'
            )
    if not tuners or any(tuner.is_merged for tuner in tuners):
        return []
    edits = [edit for tuner in tuners for edit in tuner._edits]
    thaws = {id(edit.value): edit for edit in edits if isinstance(edit, Thaw)}
    reweights = [edit for edit in edits if isinstance(edit, Reweight)]
    _refuse_tied(frozen.network, reweights)
    by_host: dict[int, list[Reweight]] = {}
    for edit in reweights:
        by_host.setdefault(id(edit.host), []).append(edit)
    merged: list[Merged] = []
    try:
        with _outside_inference(), in_eval(nn.ModuleList(tuners)):
            for of_host in by_host.values():
                merged.append(_merge(of_host, thaws))
    except BaseException:
        while merged:
            _unmerge(merged.pop())
        raise
    for tuner in tuners:
        tuner.guard()
    frozen.merges += 1
    clear_caches(frozen.network.modules())
    return merged


def _outside_inference() -> AbstractContextManager:
    """Within torch.inference_mode, torch makes tensors that can never be part of a backward pass."""
    return torch.inference_mode(False)


def _refuse_tied(network: nn.Module, edits: Iterable[Reweight]) -> None:
    """UserError if a weight to be written stands at several places of the network."""
    places = places_of(network)
    for edit in edits:
        if len(places.get(id(parameter_or_none(edit.host, edit.weight_name)), ())) > 1:
            raise UserError(
                f'{edit.weight_name!r} of {type(edit.host).__name__} cannot be merged: the weight is tied to '
                'another place of the network, which would change too. Keep the tuners attached.'
            )


def _merge(edits: Sequence[Reweight], thaws: Mapping[int, Thaw]) -> Merged:
    """Writes new tensors into the layer of `edits`, as parameters without a gradient.

    thaws: {id of a tensor: the thaw of the tensor}, of the tuners that are merged.
    """
    host = edits[0].host
    if any(tensor.is_meta for tensor in host.parameters()):
        raise UserError(
            f'{type(host).__name__} cannot be merged: its weights are on the meta device, without numbers. '
            'If accelerate has moved the weights away, take its hooks off first: '
            'remove_hook_from_submodules(network).'
        )
    first = reweights_of(host)[: len(edits)]
    for edit in first:
        if edit not in edits:
            raise UserError(
                f'{edit.weight_name!r} of {type(host).__name__} cannot be merged: a tuner that is not of '
                f'this model changes the weight first, by {type(edit.delta).__name__}. Merge the model of '
                'that tuner first, or detach that tuner.'
            )
    device = next(host.parameters()).device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):  # which would form the weights in bf16
        tensors = new_tensors(host, first)
    originals = {path: parameter_or_none(host, path) for path in tensors}
    changed = {path: tensor for path, tensor in tensors.items() if tensor is not originals[path]}
    merged = Merged(
        host,
        first,
        originals={path: originals[path] for path in changed},
        written={path: _frozen(new) for path, new in changed.items()},
        types={path: new.dtype for path, new in changed.items() if new is not None},
        thaws=[],
    )
    for path, original in merged.originals.items():
        if id(original) in thaws:
            merged.thaws.append(thaws[id(original)])
        elif original is not None and original.requires_grad:
            raise UserError(
                f'{path!r} of {type(host).__name__} cannot be merged: it trains, but by no tuner of this '
                'model. Detach the tuner that trains it, or set its requires_grad to False.'
            )
    for thaw in merged.thaws:
        thaw.before_merge = thaw.value
    take_reweights(host, len(first))
    put_tensors(host, merged.written)
    return merged


def _frozen(tensor: torch.Tensor | None) -> nn.Parameter | None:
    if tensor is None:
        return None
    parameter = nn.Parameter(tensor, requires_grad=False)
    _mark(parameter)
    return parameter


def unmerge_tuners(frozen: FrozenNetwork, tuners: Iterable[Tuner], merged: list[Merged]) -> None:
    """Undoes `merge_tuners`, bit for bit. Empties `merged`. Of tuners that are not merged: does nothing.

    UserError if a weight was replaced since. Then nothing is undone.
    """
    tuners = [tuner for tuner in tuners if tuner.is_merged]
    if not tuners:
        return
    for layer in merged:
        _refuse_replaced(layer)
    with _outside_inference():
        while merged:
            _unmerge(merged.pop())
    for tuner in tuners:
        tuner.release()
    frozen.merges -= 1
    clear_caches(frozen.network.modules())


def _refuse_replaced(merged: Merged) -> None:
    for path, tensor in merged.written.items():
        if parameter_or_none(merged.host, path) is not tensor:
            raise UserError(
                f'{path!r} of {type(merged.host).__name__} cannot be unmerged: another tensor stands there '
                'since merge(). Unmerge the model that was merged later, or detach the tuner that came '
                'later. If other code replaced the tensor (an offload of accelerate, a load with '
                'assign=True), make the network again, and put tuners with the numbers of trained_state() '
                'on it.'
            )


def _unmerge(merged: Merged) -> None:
    """Undoes `_merge`, bit for bit.

    If the module has moved since, or has another type since, the old tensors follow. Edits that the merged
    module got since act after the old edits.
    """
    for path, original in merged.originals.items():
        now = parameter_or_none(merged.host, path)
        if original is not None and now is not None:
            kind = original.dtype if now.dtype == merged.types[path] else now.dtype
            original.data = original.data.to(now.device, kind)
    put_tensors(merged.host, merged.originals)
    give_reweights(merged.host, merged.edits)
    for thaw in merged.thaws:
        thaw.before_merge = None


def refuse_training(tuners: Iterable[Tuner], training: bool) -> None:
    """UserError if merged tuners would train, or if their numbers were written to since the merge."""
    for tuner in tuners:
        if not tuner.is_merged:
            continue
        if training and torch.is_grad_enabled():
            raise merged_error(TRAINED)
        if not torch.compiler.is_compiling():  # a graph holds no checks
            tuner.refuse_written()


def refuse_backward(model: nn.Module, tuners: Iterable[Tuner], given: object, output: object) -> None:
    """While tuners are merged: a backward pass from `output` that trains `model` raises a UserError.

    Gradients of inputs and of activations are right, because they show where the network looks. So nothing is
    refused if the graph has a leaf beside the parameters of the model, or if the pass computes the gradient
    of no parameter.
    given: the input. If a tensor of the input needs a gradient, the graph is not asked.
    """
    if not any(tuner.is_merged for tuner in tuners) or any(t.requires_grad for t in _tensors(given)):
        return
    for tensor in _tensors(output):
        if tensor.requires_grad and tensor.grad_fn is not None:
            # the nodes below, because a hook that holds the node of its tensor would keep the graph alive
            nodes = [node for node, _ in tensor.grad_fn.next_functions]
            tensor.register_hook(partial(_refuse_gradient, model, nodes))


def _tensors(value: object) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tensors(found.append, value)
    return found


def _refuse_gradient(model: nn.Module, nodes: Iterable[Any], gradient: torch.Tensor) -> None:
    """A hook of an output: refuses a backward pass that gives gradients to the parameters of the model."""
    leaves = _leaves_below(nodes)
    parameters = set(map(id, model.parameters()))
    if any(id(leaf.variable) not in parameters for leaf in leaves):
        return
    if leaves and not any(map(is_in_backward, leaves)):
        return
    raise merged_error(
        TRAINED,
        ' To train other modules behind the model, call the model within torch.no_grad(). To see where the '
        'model looks, give an input that needs a gradient, or call torch.autograd.grad for an activation.',
    )


def _leaves_below(nodes: Iterable[Any]) -> list[Any]:
    """The nodes of a graph that stand for its leaves: for tensors that need a gradient."""
    seen = set()
    leaves = []
    below = list(nodes)
    while below:
        node = below.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, 'variable'):
            leaves.append(node)
        below += [after for after, _ in node.next_functions]
    return leaves
