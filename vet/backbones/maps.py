"""The maps of features that networks of timm and torchvision can give. See vet/core/maps.py."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.models import VisionTransformer

from vet.core.dry_run import Call
from vet.core.maps import Maps


def maps_of_timm(network: object) -> Maps | None:
    """The maps of timm's `forward_intermediates`. None: the network has none."""
    info = getattr(network, 'feature_info', None)
    if not hasattr(network, 'forward_intermediates') or not isinstance(info, list) or not info:
        return None
    strides = tuple(stage['reduction'] for stage in info)
    # the last norm of a plain ViT belongs to the features of each block; stages have different channels
    compute = partial(_intermediates, norm=len(set(strides)) == 1)
    return Maps(tuple(stage['num_chs'] for stage in info), strides, compute)


def _intermediates(
    network: Any, images: torch.Tensor, stages: Sequence[int], norm: bool
) -> list[torch.Tensor]:
    return network.forward_intermediates(
        images, indices=list(stages), norm=norm, output_fmt='NCHW', intermediates_only=True
    )


def maps_of_torchvision(network: nn.Module, calls: Mapping[str, Call], size: tuple[int, int]) -> Maps | None:
    """The maps of torchvision's networks. None: the network has none.

    ViT: the tokens after each block, as maps. Other networks: the last map of each size.
    calls: the dry run of the network with an image of `size`.
    """
    if isinstance(network, VisionTransformer):
        return _maps_of_vit(network, calls)
    last: dict[tuple[int, ...], str] = {}
    for name, call in calls.items():
        shape = call.out_shape
        if len(shape) == 3 and call.out_axis in (0, -3) and shape[1] > 1 and name.count('.') < 2 and name:
            last[tuple(shape[1:])] = name
    if not last:
        return None
    paths = list(last.values())
    channels = tuple(calls[path].out_shape[0] for path in paths)
    return Maps(channels, tuple(size[0] // shape[0] for shape in last), partial(_outputs, paths))


def _maps_of_vit(network: VisionTransformer, calls: Mapping[str, Call]) -> Maps:
    blocks = [f'encoder.layers.{name}' for name, _ in network.encoder.layers.named_children()]
    paths = [*blocks[:-1], 'encoder.ln']
    channels = (network.hidden_dim,) * len(paths)
    return Maps(channels, (network.patch_size,) * len(paths), partial(_tokens, paths))


def _outputs(
    paths: Sequence[str], network: nn.Module, images: torch.Tensor, stages: Sequence[int]
) -> list[torch.Tensor]:
    """The outputs of the modules of some stages, while the network runs."""
    kept: dict[int, torch.Tensor] = {}
    with ExitStack() as stack:
        for stage in stages:
            keep = partial(_keep, kept, stage)
            stack.enter_context(network.get_submodule(paths[stage]).register_forward_hook(keep))
        network(images)
    return [kept[stage] for stage in stages]


def _keep(
    kept: dict[int, torch.Tensor], stage: int, module: nn.Module, args: tuple, out: torch.Tensor
) -> None:
    kept[stage] = out


def _tokens(
    paths: Sequence[str], network: Any, images: torch.Tensor, stages: Sequence[int]
) -> list[torch.Tensor]:
    """Tokens (B, 1 + h w, C) behind the class token -> maps (B, C, h, w)."""
    grid = [side // network.patch_size for side in images.shape[-2:]]
    found = _outputs(paths, network, images, stages)
    return [tokens[:, 1:].transpose(1, 2).unflatten(2, grid) for tokens in found]
