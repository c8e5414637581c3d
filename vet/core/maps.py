"""Maps: the features of each place of an image, for heads that answer for each pixel.

A stage of a network gives a map (B, C, h, w). A plain ViT has one map after each block, all of one size. A
hierarchical network has smaller maps with more channels in later stages.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from vet.core.edits import FlowEdit
from vet.core.modes import in_eval
from vet.errors import UserError


@dataclass(frozen=True)
class Maps:
    """The maps that a network can give. The file of the network's family makes them.

    channels: C of each stage, from the first stage to the last.
    strides: the pixels of the image between two places of the map, for each stage.
    compute: (network, images (B, 3, H, W), numbers of stages) -> their maps, in this order. The network's
        modules are called, so that the edits of tuners act.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    compute: Callable[[nn.Module, torch.Tensor, Sequence[int]], Sequence[torch.Tensor]]

    def stages(self, most: int) -> tuple[int, ...]:
        """At most `most` stages, the last always among them.

        Of a plain ViT: stages at even distances. Of a hierarchical network: the last stages.
        """
        number = len(self.channels)
        count = min(most, number)
        if len(set(self.strides)) == 1:
            return tuple(number * (place + 1) // count - 1 for place in range(count))
        return tuple(range(number - count, number))


class MapHead(nn.Module):
    """The base class of heads that read maps: maps, size (H, W) of the images -> logits (B, K, H, W).

    A head is built with `channels`, C of each map that it gets, from fine to coarse, and with `num_classes`.
    maps: the largest number of maps that the head reads.
    stages: the stages whose maps the head gets. `build_classifier` sets them.
    """

    maps: ClassVar[int] = 1
    stages: tuple[int, ...] = ()

    def forward(self, maps: Sequence[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        raise NotImplementedError(f'{type(self).__name__} must write forward(maps, size)')


def require_maps(backbone: Any, head: str) -> Maps:
    """The maps of a backbone. UserError if it has none."""
    if backbone.maps is None:
        raise UserError(
            f'the head {head!r} reads maps of features, but the backbone {backbone.identity.get("name")!r} '
            f'({type(backbone.network).__name__}) gives none. Choose another backbone, such as a ViT, a Swin '
            'or a ResNet of timm.'
        )
    return backbone.maps


@torch.no_grad()
def refuse_edits_beside_maps(backbone: Any, tuners: Sequence[Any], stages: Sequence[int]) -> None:
    """Computes the maps of one image. UserError if a tuner changes their form, or edits a module that the
    maps do not come from.
    """
    network = backbone.network
    called = set[nn.Module]()
    image = torch.zeros(1, 3, *backbone.preprocessing.size, device=next(network.parameters()).device)
    with ExitStack() as stack:
        stack.enter_context(in_eval(backbone))
        for module in network.modules():
            stack.enter_context(module.register_forward_pre_hook(lambda module, _: called.add(module)))
        try:
            maps = backbone.maps.compute(network, image, stages)
            shapes = [tuple(one.shape[:2]) for one in maps]
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
            raise UserError(
                f'{" and ".join(type(tuner).__name__ for tuner in tuners) or "the backbone"} leaves no maps '
                f'of features in {type(network).__name__}: {str(error).rstrip(".")}. Choose another tuner, '
                'such as LoRA.'
            ) from error
    wanted = [(1, backbone.maps.channels[stage]) for stage in stages]
    if shapes != wanted:
        raise UserError(f'{type(network).__name__} gives maps of {shapes}; expected: {wanted}.')
    names = {module: name for name, module in network.named_modules()}
    for tuner in tuners:
        beside = [edit for edit in tuner._edits if isinstance(edit, FlowEdit) and edit.module not in called]
        if beside:
            raise UserError(
                f'{type(tuner).__name__} edits {names[beside[0].module] or "the whole network"!r} of '
                f'{type(network).__name__}, but the maps of features do not pass through it. Choose another '
                'tuner, such as LoRA, or a head of pooled features.'
            )
