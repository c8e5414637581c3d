"""Guarded: the base class of Tuner. While a tuner is merged, its numbers are in the weights of the network.

A change of its numbers would then change nothing that is computed. So a merged tuner refuses to train, to
load numbers, and to leave the network. core.merge calls `guard` and `release`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from vet.core.backbone import TRAINED, FrozenNetwork, merged_error
from vet.errors import UserError
from vet.torch_private import buffers_of, parameters_of, times_written


@dataclass(eq=False)
class _AtMerge:
    """A tensor of a tuner, as it was at the merge."""

    tensor: torch.Tensor
    times: int  # how often the tensor was written to
    numbers: torch.Tensor  # a copy

    @classmethod
    def of(cls, tensor: torch.Tensor) -> '_AtMerge':
        return cls(tensor, times_written(tensor), tensor.detach().clone())

    def differs_from(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` now holds other numbers. Another device and another type are no difference.

        False if the numbers cannot be compared, as on the meta device and within torch.func.vmap.
        """
        try:
            return not torch.equal(tensor, self.numbers.to(tensor))
        except RuntimeError:
            return False


class Guarded(nn.Module):
    """A module that edits the network of `backbone`, and that can be merged into its weights."""

    backbone: FrozenNetwork | None = None  # the backbone of `attach`, for `prepare`; no submodule
    is_merged = False  # whether the reweights of this tuner are written into the weights, see core.merge
    _handles: tuple[RemovableHandle, ...] = ()
    _tables: tuple[dict[str, torch.Tensor | None], ...] = ()  # of all modules, which a call reads fast
    _at_merge: tuple[_AtMerge, ...] = ()

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The names and parameters that train."""
        return self.named_parameters()

    def guard(self) -> None:
        """From now on, this tuner is merged."""
        self.release()
        assert self.backbone is not None
        trains = [parameter for _, parameter in self.trainable() if parameter.requires_grad]
        self._handles = (
            *(parameter.register_hook(partial(_refuse_gradient, self.backbone)) for parameter in trains),
            *(
                module.register_load_state_dict_pre_hook(partial(_refuse_to_load, self.backbone))
                for module in self.modules()
            ),
        )
        self._tables = tuple(
            table
            for module in self.modules()
            for table in (parameters_of(module), buffers_of(module))
            if table
        )
        self._at_merge = tuple(map(_AtMerge.of, self._tensors()))
        self.is_merged = True

    def release(self) -> None:
        """From now on, this tuner is not merged."""
        for handle in self._handles:
            handle.remove()
        self._handles = ()
        self._tables = ()
        self._at_merge = ()
        self.is_merged = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy or a pickle, whose parameters have no hooks."""
        super().__setstate__(state)
        if self.is_merged:
            self.guard()

    def refuse_merged(self, action: str) -> None:
        """UserError if this tuner is merged."""
        if self.is_merged:
            assert self.backbone is not None
            raise merged_tuners(self.backbone.sites.family, action)

    def refuse_written(self) -> None:
        """UserError if this merged tuner has other numbers than at the merge.

        Writes through `.data` are not seen.
        """
        tensors = self._tensors()
        if len(tensors) == len(self._at_merge):
            pairs = list(zip(self._at_merge, tensors))
            if all(was.tensor is now and was.times == times_written(now) for was, now in pairs):
                return
            if not any(was.differs_from(now) for was, now in pairs):
                self._at_merge = tuple(map(_AtMerge.of, tensors))
                return
        raise UserError(
            f'the numbers of {type(self).__name__} have changed since merge(), but the merged weights '
            'hold the old numbers. Call unmerge() of the model, and merge() again.'
        )

    def _tensors(self) -> list[torch.Tensor]:
        return [tensor for table in self._tables for tensor in table.values() if tensor is not None]


def merged_tuners(family: str, action: str) -> UserError:
    """The error about what no tuner can do while tuners are merged into the network `family`."""
    return UserError(
        f'the tuners are merged into the weights of {family}, so no tuner can be {action}; call unmerge() of '
        'the model first.'
    )


def _refuse_to_load(frozen: FrozenNetwork, *rest: object) -> None:
    raise merged_tuners(frozen.sites.family, 'loaded')


def _refuse_gradient(frozen: FrozenNetwork, gradient: torch.Tensor) -> None:
    """In eval mode, a gradient may show where the network looks."""
    if frozen.network.training:
        raise merged_error(TRAINED)
