"""Every torchvision classifier as a backbone, by its name, with torchvision's own weights and preprocessing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

from vet.backbones.roles import find_layout
from vet.core.backbone import Backbone, Preprocessing, load_weights, read_weights
from vet.errors import DataError, UnknownNameError, UserError
from vet.registry import BACKBONES


@BACKBONES.register_module(name='torchvision')
def torchvision_backbone(name: str, weights: str = 'DEFAULT', pretrained: bool = True, checkpoint: str | Path | None = None,
                         roles: Mapping[str, str] | None = None, preprocessing: Mapping[str, Any] | None = None,
                         kwargs: Mapping[str, Any] | None = None) -> Backbone:
    """`torchvision.models.get_model(name)` without its last linear layer, frozen.

    weights: which of torchvision's weights, such as 'IMAGENET1K_V2'; they also say the preprocessing.
    Other arguments as for 'timm'.
    """
    if name not in models.list_models(module=models):
        raise UnknownNameError('torchvision classifier', name, models.list_models(module=models))
    choices = models.get_model_weights(name)
    try:
        chosen = choices[weights] if weights != 'DEFAULT' else choices.DEFAULT
    except KeyError:
        raise UnknownNameError(f'weights of torchvision {name!r}', weights, [w.name for w in choices]) from None
    from_hub = pretrained and checkpoint is None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            options = dict(init_weights=True) if name in ('googlenet', 'inception_v3') else {}
            network = models.get_model(name, weights=None, **options, **(kwargs or {}))
        except (TypeError, ValueError) as error:
            raise UserError(f'torchvision cannot make {name!r} with model.backbone.kwargs={dict(kwargs or {})}: {error}') from error
    classifier = _remove_classifier(network)
    if from_hub:
        load_weights(network, _download(chosen), chosen.url, (classifier, 'AuxLogits', 'aux1', 'aux2'))
    elif checkpoint is not None:
        load_weights(network, read_weights(checkpoint), str(checkpoint), (classifier, 'AuxLogits', 'aux1', 'aux2'))
    eval_transform = chosen.transforms()
    crop, resized = eval_transform.crop_size[0], eval_transform.resize_size[0]
    size = getattr(network, 'image_size', crop)
    wanted = Preprocessing((size, size), tuple(eval_transform.mean), tuple(eval_transform.std), crop / resized,
                           eval_transform.interpolation.value)
    patch = getattr(network, 'patch_size', None)
    grid = (size // patch, size // patch) if isinstance(patch, int) else None
    return Backbone(network, find_layout(network, roles, grid, 1 if hasattr(network, 'class_token') else 0),
                    wanted.with_changes(preprocessing or {}), dict(
        type='torchvision', name=name, tag=chosen.name, weights=weights, pretrained=pretrained,
        checkpoint=checkpoint and str(checkpoint), roles=dict(roles or {}), preprocessing=dict(preprocessing or {}),
        kwargs=dict(kwargs or {})))


def _remove_classifier(network: Any) -> str:
    """Puts an Identity in place of the last layer, a Linear (SqueezeNet: a 1 x 1 convolution), and returns its path."""
    for name in ('aux1', 'aux2', 'AuxLogits'):          # GoogLeNet's and Inception's training-time classifiers
        if getattr(network, name, None) is not None:
            setattr(network, name, None)
            network.aux_logits = False
    path = [name for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    owner, _, name = path.rpartition('.')
    setattr(network.get_submodule(owner), name, nn.Identity())
    return path


def _download(weights: Any) -> dict[str, torch.Tensor]:
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f'the weights {weights} are missing: {weights.url} could not be downloaded ({error}). Either give the file with '
            f'--cfg-options model.backbone.checkpoint=PATH, or run once with a network.') from error
