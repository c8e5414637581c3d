"""Reads weight files for timm's networks: timm's own names, layouts that timm reads (CLIP, DINOv2, …),
Google's .npz.
"""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from vet.core.backbone import WatchedResampling, load_weights, read_weights, refuse_not_finite
from vet.errors import DataError

Tensors = dict[str, torch.Tensor]
PATCHES = re.compile(  # the names of timm, OpenCLIP and OpenAI
    r'(visual\.trunk\.)?patch_embed\.proj\.weight|visual\.conv1\.weight'
)
# prefixes of all names; params/txt/ is SigLIP's text tower
GOOGLE_PREFIXES = ('opt/target/', 'params/img/', 'params/')


def load_file(
    network: Any, name: str, path: Path, may_be_left: tuple[str, ...], use_ema: bool = True
) -> Tensors | None:
    """Loads the file into timm's network `name`. DataError if the file does not fit.

    may_be_left: the path of the classifier, if the classifier is not kept.
    vet leaves out the text tower of a CLIP or SigLIP, and a representation layer. Positions of another grid
    are resampled. Returns the weights of the file if the network's positions were resampled from them.
    Otherwise None.
    """
    if path.suffix == '.npz':
        if not path.is_file():
            raise DataError(
                f'the weight file {str(path)!r} does not exist; give an existing file in '
                'model.backbone.checkpoint.'
            )
        try:
            with WatchedResampling() as resampling:
                _load_npz(network, path)
            refuse_not_finite(network, str(path))
            return _arrays(path) if resampling.seen else None
        except DataError:
            raise
        except Exception as error:  # numpy, zipfile and timm raise errors of many kinds
            raise DataError(
                f'{path} holds no Google .npz weights of {type(network).__name__}: {error}'
            ) from error
    state = read_weights(path, use_ema)
    if 'visual.class_embedding' in state and '.' not in name:
        raise DataError(
            f'{path} is a whole CLIP model. Its activation, mean and std depend on who trained it, and '
            f'{name!r} does not say this. Give model.backbone.name with a tag: '
            f'{timm.list_pretrained(f"{name}.*")}.'
        )
    read = dict(state)
    resampling = WatchedResampling()
    adapt = getattr(importlib.import_module(type(network).__module__), 'checkpoint_filter_fn', None)
    if adapt and _shapes(state) != _shapes(network.state_dict()):  # other names, or positions of another grid
        try:
            for kernel in (
                tensor for key, tensor in state.items() if PATCHES.fullmatch(key) and tensor.dim() == 4
            ):
                _check_patches(network, kernel.shape[-2:])
            with resampling:
                state = adapt(state, network)
        except (KeyError, RuntimeError, AttributeError, TypeError):
            pass  # the file is of another family; the error below names what does not fit
        except ValueError as error:
            raise DataError(
                f'{path} holds the weights of another architecture than {name!r}: {error}. Give the '
                'checkpoint of this backbone, or the backbone of this checkpoint.'
            ) from error
    load_weights(network, state, str(path), may_be_left)
    grown = any(name in read and read[name].numel() != tensor.numel() for name, tensor in state.items())
    return read if resampling.seen or grown else None


def read_again(network: Any) -> Tensors | None:
    """The weights that timm read for a pretrained network, from the cache of its hub or of torch.

    None: not there.
    """
    settings = network.pretrained_cfg or {}
    try:
        if settings.get('hf_hub_id'):
            name = settings.get('hf_hub_filename')
            return timm.models.load_state_dict_from_hf(
                settings['hf_hub_id'], **(dict(filename=name) if name else {})
            )
        return torch.hub.load_state_dict_from_url(settings['url'], map_location='cpu', weights_only=True)
    except Exception:  # of many kinds; then the sha256 is that of the network's own weights
        return None


def _arrays(path: Path) -> Tensors:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def _load_npz(network: Any, path: Path) -> None:
    """Loads an .npz file.

    ValueError for a file that timm would load only in part, or wrongly, without a message.
    """
    with np.load(path) as arrays:
        prefix = next((prefix for prefix in GOOGLE_PREFIXES if f'{prefix}embedding/kernel' in arrays), '')
        classes = len(arrays[f'{prefix}head/bias']) if network.num_classes else 0
        blocks = {
            match[0] for name in arrays if (match := re.match(rf'{prefix}Transformer/encoderblock_\d+', name))
        }
        represented = f'{prefix}pre_logits/bias' in arrays
        _check_patches(network, arrays[f'{prefix}embedding/kernel'].shape[:2])
    if len(blocks) != len(network.blocks):
        raise ValueError(f'the file has {len(blocks)} blocks, but the network has {len(network.blocks)}')
    if classes != network.num_classes:
        raise ValueError(f'the file has {classes} classes, but the network has {network.num_classes}')
    if classes and represented:
        raise ValueError(
            'its classifier reads a representation layer (pre_logits), which timm does not have; '
            'leave model.backbone.classifier out'
        )
    network.load_pretrained(str(path))


def _check_patches(network: Any, given: tuple[int, ...]) -> None:
    """ValueError for other patches. timm would resample their kernels, which makes another network."""
    needed = network.patch_embed.proj.weight.shape[-2:]
    if tuple(given) != tuple(needed):
        raise ValueError(f'its patches are of {tuple(given)} pixels, but the network has {tuple(needed)}')


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}
