"""Guarded: the base class of Tuner. While a tuner is merged, its numbers are in the weights of the network.

A change of its numbers would then change nothing that is computed. So a merged tuner refuses to train, to
load numbers, and to leave the network. core.merge calls `guard` and `release`.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from vet.core.backbone import FrozenNetwork, merged_error
from vet.errors import UserError
from vet.torch_private import times_written


class Guarded(nn.Module):
    """A module that edits the network of `backbone`, and that can be merged into its weights."""

    backbone: FrozenNetwork | None = None  # the backbone of `attach`, for `prepare`; no submodule
    is_merged = False  # whether the reweights of this tuner are written into the weights, see core.merge
    _handles: tuple[RemovableHandle, ...] = ()
    _written: tuple[int, ...] = ()  # how often each tensor was written to before the merge

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
        self._written = self._times_written()
        self.is_merged = True

    def release(self) -> None:
        """From now on, this tuner is not merged."""
        for handle in self._handles:
            handle.remove()
        self._handles = ()
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
        """UserError if the numbers of this merged tuner were written to since the merge.

        Writes through `.data` are not seen.
        """
        if self._times_written() != self._written:
            raise UserError(
                f'the numbers of {type(self).__name__} have changed since merge(), but the merged weights '
                'hold the old numbers. Call unmerge() of the model, and merge() again.'
            )

    def _times_written(self) -> tuple[int, ...]:
        return tuple(times_written(tensor) for tensor in (*self.parameters(), *self.buffers()))


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
        raise merged_error('trained: the tuners would get no gradient')
