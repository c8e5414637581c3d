"""Every timm model as a backbone, by its name, with timm's own weights and preprocessing."""

import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import timm
import torch

from vet.backbones.roles import find_layout
from vet.core.backbone import Backbone, Preprocessing, load_weights, read_weights
from vet.errors import DataError, UnknownNameError, UserError
from vet.registry import BACKBONES


@BACKBONES.register_module(name='timm')
def timm_backbone(name: str, pretrained: bool = True, checkpoint: str | Path | None = None,
                  roles: Mapping[str, str] | None = None, preprocessing: Mapping[str, Any] | None = None,
                  kwargs: Mapping[str, Any] | None = None) -> Backbone:
    """`timm.create_model(name, num_classes=0, **kwargs)`, frozen.

    name: timm's, with the tag of the weights: 'vit_base_patch16_224.orig_in21k'.
    checkpoint: a file to read the weights from (.safetensors, .pth, Google's .npz), instead of timm's hub.
    pretrained: False, without a checkpoint: random weights, drawn from a fixed seed.
    roles: role names to regular expressions over module paths, for a family whose roles are not found.
    preprocessing: changes to timm's settings (size, mean, std, crop_pct, interpolation).
    """
    if not timm.is_model(name):
        raise UnknownNameError('timm model', name, timm.list_models(), 'timm.list_models("*name*") finds names.')
    from_hub = pretrained and checkpoint is None
    if from_hub and not timm.models.is_model_pretrained(name):
        raise UserError(f'timm has no weights for {name!r}; it has {timm.list_pretrained(name.partition(".")[0] + ".*")}. '
                        f'Choose one of these, or give model.backbone.checkpoint a file.')
    with torch.random.fork_rng(devices=[]), _cache_alone_without_network() if from_hub else nullcontext():
        torch.manual_seed(0)
        try:
            network: Any = timm.create_model(name, pretrained=from_hub, num_classes=0, **(kwargs or {}))
        except OSError as error:
            raise DataError(_not_downloaded(name, error)) from error
        except Exception as error:      # timm's constructors check little: any error of theirs is an argument's
            raise UserError(f'timm cannot make {name!r} with model.backbone.kwargs={dict(kwargs or {})}: '
                            f'{type(error).__name__}: {error}') from error
    if checkpoint is not None:
        _load(network, Path(checkpoint).expanduser())
    patches = getattr(network, 'patch_embed', None)
    layout = find_layout(network, roles, getattr(patches, 'grid_size', None), getattr(network, 'num_prefix_tokens', 0))
    settings = timm.data.resolve_model_data_config(network)
    size = getattr(patches, 'img_size', None) or settings['input_size'][1:]
    wanted = Preprocessing(tuple(size), settings['mean'], settings['std'], settings['crop_pct'], settings['interpolation'])
    tag = name.partition('.')[2]
    return Backbone(network, layout, wanted.with_changes(preprocessing or {}), dict(
        type='timm', name=name, tag=tag or (network.pretrained_cfg or {}).get('tag', ''), pretrained=pretrained,
        checkpoint=checkpoint and str(checkpoint), roles=dict(roles or {}), preprocessing=dict(preprocessing or {}),
        kwargs=dict(kwargs or {})))


@contextmanager
def _cache_alone_without_network() -> Iterator[None]:
    """The hub's client retries for most of a minute; where one look finds no hub, it reads its cache and asks nobody."""
    settings = huggingface_hub.constants
    offline = settings.HF_HUB_OFFLINE
    try:
        huggingface_hub.get_session().head(settings.ENDPOINT, timeout=4)
    except Exception:       # httpx's or requests' errors, by the version of huggingface_hub
        settings.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        settings.HF_HUB_OFFLINE = offline


def _load(network: Any, path: Path) -> None:
    if path.suffix == '.npz':
        if not path.is_file():
            raise DataError(f'the weight file {str(path)!r} does not exist; give an existing file in model.backbone.checkpoint.')
        try:
            with np.load(path) as arrays:
                blocks = {match[0] for name in arrays if (match := re.match(r'Transformer/encoderblock_\d+', name))}
            if len(blocks) != len(network.blocks):
                raise ValueError(f'it has {len(blocks)} blocks, needed {len(network.blocks)}')
            network.load_pretrained(str(path))
        except Exception as error:      # numpy's, zipfile's and timm's, of many kinds
            raise DataError(f'{path} holds no Google .npz weights of {type(network).__name__}: {error}') from error
        return
    state = read_weights(path)
    adapt = getattr(importlib.import_module(type(network).__module__), 'checkpoint_filter_fn', None)
    if adapt and set(state) != set(network.state_dict()):
        try:
            state = adapt(state, network)
        except (KeyError, RuntimeError, AttributeError, TypeError, ValueError):
            pass        # not of this family: what does not fit is named below
    classifier = (network.pretrained_cfg or {}).get('classifier') or ()
    load_weights(network, state, str(path), (classifier,) if isinstance(classifier, str) else tuple(classifier))


def _not_downloaded(name: str, error: Exception) -> str:
    settings: Any = timm.get_pretrained_cfg(name)
    source = f'{settings.hf_hub_id} (file model.safetensors) on the Hugging Face hub' if settings.hf_hub_id else settings.url
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (f'the weights of {name!r} are missing: {source} could not be downloaded ({reason}). Either give the file with '
            f'--cfg-options model.backbone.checkpoint=PATH (.safetensors, .pth or .npz), or run once with a network.')
