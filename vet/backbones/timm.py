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
                  kwargs: Mapping[str, Any] | None = None, classifier: bool = False) -> Backbone:
    """`timm.create_model(name, num_classes=0, **kwargs)`, frozen.

    name: timm's, with the tag of the weights: 'vit_base_patch16_224.orig_in21k'.
    checkpoint: a file to read the weights from (.safetensors, .pth, Google's .npz), instead of timm's hub.
    pretrained: False, without a checkpoint: random weights, drawn from a fixed seed.
    roles: role names to regular expressions over module paths, for a family whose roles are not found.
    preprocessing: changes to timm's settings (size, mean, std, crop_pct, interpolation).
    kwargs: such as dict(global_pool='catavgmax') of a convolutional network: its features are cat(mean, max), 2 C.
    classifier: True keeps the pretrained classifier, of timm's or kwargs' num_classes: the output are its logits.
    """
    if not timm.is_model(name):
        raise UnknownNameError('timm model', name, timm.list_models(), 'timm.list_models("*name*") finds names.')
    from_hub = pretrained and checkpoint is None
    options: dict[str, Any] = dict(kwargs or {})
    output: dict[str, Any] = {} if classifier else dict(num_classes=0)
    if from_hub and not timm.models.is_model_pretrained(name):
        raise UserError(f'timm has no weights for {name!r}; it has {timm.list_pretrained(name.partition(".")[0] + ".*")}. '
                        f'Choose one of these, or give model.backbone.checkpoint a file.')
    if classifier and from_hub and 'num_classes' in options:        # timm would drop a classifier of another number, in silence
        raise UserError(f'model.backbone.kwargs.num_classes is {options["num_classes"]}, but the classifier of {name!r} comes with '
                        f'its own number; leave it out, or give model.backbone.checkpoint a file.')
    with torch.random.fork_rng(devices=[]), _cache_alone_without_network() if from_hub else nullcontext():
        torch.manual_seed(0)
        try:
            network: Any = timm.create_model(name, pretrained=from_hub, **output, **options)
        except OSError as error:
            raise DataError(_not_downloaded(name, error)) from error
        except Exception as error:      # timm's constructors check little: any error of theirs is an argument's
            raise UserError(f'timm cannot make {name!r} with model.backbone.kwargs={options}: '
                            f'{type(error).__name__}: {error}') from error
    heads = (network.pretrained_cfg or {}).get('classifier') or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    if classifier and not (heads and network.num_classes):
        raise UserError(f'{name!r} has no classifier to keep; leave model.backbone.classifier out, or give a checkpoint '
                        f'that has one, and kwargs=dict(num_classes=…).')
    if checkpoint is not None:
        _load(network, Path(checkpoint).expanduser(), () if classifier else heads)
    patches = getattr(network, 'patch_embed', None)
    layout = find_layout(network, roles, getattr(patches, 'grid_size', None), getattr(network, 'num_prefix_tokens', 0),
                         heads if classifier else ())
    settings = timm.data.resolve_model_data_config(network)
    size = getattr(patches, 'img_size', None) or settings['input_size'][1:]
    wanted = Preprocessing(tuple(size), settings['mean'], settings['std'], settings['crop_pct'], settings['interpolation'])
    tag = name.partition('.')[2]
    return Backbone(network, layout, wanted.with_changes(preprocessing or {}), dict(
        type='timm', name=name, tag=tag or (network.pretrained_cfg or {}).get('tag', ''), pretrained=pretrained,
        checkpoint=checkpoint and str(checkpoint), roles=dict(roles or {}), preprocessing=dict(preprocessing or {}),
        kwargs=options, classifier=classifier), wanted)


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


def _load(network: Any, path: Path, may_be_left: tuple[str, ...]) -> None:
    """may_be_left: the path of the classifier, where it is not kept."""
    if path.suffix == '.npz':
        if not path.is_file():
            raise DataError(f'the weight file {str(path)!r} does not exist; give an existing file in model.backbone.checkpoint.')
        try:
            with np.load(path) as arrays:
                classes = len(arrays['head/bias']) if network.num_classes else 0
                blocks = {match[0] for name in arrays if (match := re.match(r'Transformer/encoderblock_\d+', name))}
            if len(blocks) != len(network.blocks):
                raise ValueError(f'it has {len(blocks)} blocks, needed {len(network.blocks)}')
            if classes != network.num_classes:      # timm would leave the classifier as it was drawn
                raise ValueError(f'it has {classes} classes, needed {network.num_classes}')
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
    load_weights(network, state, str(path), may_be_left)


def _not_downloaded(name: str, error: Exception) -> str:
    settings: Any = timm.get_pretrained_cfg(name)
    source = f'{settings.hf_hub_id} (file model.safetensors) on the Hugging Face hub' if settings.hf_hub_id else settings.url
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (f'the weights of {name!r} are missing: {source} could not be downloaded ({reason}). Either give the file with '
            f'--cfg-options model.backbone.checkpoint=PATH (.safetensors, .pth or .npz), or run once with a network.')
