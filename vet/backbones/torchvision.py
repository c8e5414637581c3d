"""Every torchvision classifier as a backbone, by its name, with torchvision's own weights and
preprocessing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from timm.layers import SelectAdaptivePool2d
from torch import nn
from torchvision import models

from vet.allowed import OneOf
from vet.backbones.kwargs import check_kwargs, height_and_width
from vet.backbones.maps import maps_of_torchvision
from vet.backbones.roles import find_layout
from vet.core.backbone import Backbone, Preprocessing, load_weights, read_weights
from vet.core.budget import rehearse_building
from vet.core.permits import FLAG, NOTHING, PREPROCESSING, ROLES, SETTINGS, WORD, dicts, permits
from vet.errors import DataError, UnknownNameError, UserError
from vet.offline import silence_bounded
from vet.registry import BACKBONES

POOLS = ('avg', 'max', 'avgmax', 'catavgmax')
AUXILIARY = ('aux1', 'aux2', 'AuxLogits')  # classifiers of GoogLeNet and Inception that only training uses
# Their weights come from TensorFlow. get_model, given `weights`, sets this too. Images that are normalised by
# ImageNet's mean and std are then normalised again, by 0.5, inside the network.
PORTED = dict.fromkeys(
    ('googlenet', 'inception_v3'), dict(transform_input=True, aux_logits=False, init_weights=False)
)

# The kwargs that a model folder may name. torchvision takes further ones, some of which are code.
ARCHITECTURE = """
    alpha attention_dropout aux_logits bn_size depths dropout dropout_aux drop_rate embed_dim groups
    growth_rate head_dim hidden_dim image_size in_channels init_weights input_size last_channel layer_scale
    layers memory_efficient mlp_dim mlp_ratio num_classes num_heads num_init_features num_layers
    partition_size patch_size replace_stride_with_dilation representation_size round_nearest stem_channels
    stem_width stochastic_depth_prob transform_input width_mult width_per_group window_size zero_init_residual
""".split()
KWARGS = dicts(
    dict.fromkeys(ARCHITECTURE, SETTINGS),
    'sizes, depths and flags of a network (see vet/backbones/torchvision.py)',
)


@BACKBONES.register_module(name='torchvision')
@permits(
    name=WORD,
    weights=WORD,
    pretrained=FLAG,
    roles=ROLES,
    preprocessing=PREPROCESSING,
    kwargs=NOTHING | KWARGS,
    classifier=FLAG,
    pool=NOTHING | WORD,
    use_ema=FLAG,
)
def torchvision_backbone(
    name: str,
    weights: str = 'DEFAULT',
    pretrained: bool = True,
    checkpoint: str | Path | None = None,
    roles: Mapping[str, str] | None = None,
    preprocessing: Mapping[str, object] | None = None,
    kwargs: Mapping[str, object] | None = None,
    classifier: bool = False,
    pool: Annotated[str, OneOf(POOLS)] | None = None,
    use_ema: bool = True,
) -> Backbone:
    """`torchvision.models.get_model(name)` without its last linear layer, frozen.

    name: torchvision's name of the network, such as 'resnet50'.
    weights: the name of torchvision's weights, such as 'IMAGENET1K_V2'. They also decide the preprocessing.
    pool: 'avg', 'max', 'avgmax' or 'catavgmax'. It replaces the network's own pool and all layers after it
        (in AlexNet and VGG these are two more layers). Features have C channels, cat(mean, max) 2 C.
    pretrained, checkpoint, roles, preprocessing, kwargs, classifier, use_ema: as for 'timm', see `vet list
        backbones timm`.
    """
    if name not in models.list_models(module=models):
        raise UnknownNameError('torchvision classifier', name, models.list_models(module=models))
    if pool is not None and pool not in POOLS:
        raise UnknownNameError('model.backbone.pool', pool, POOLS)
    if pool and classifier:
        raise UserError(
            f'model.backbone.pool is {pool!r}, but the kept classifier needs the pool with which it '
            'was trained. Leave pool or classifier out.'
        )
    choices = models.get_model_weights(name)
    try:
        chosen = choices[weights] if weights != 'DEFAULT' else choices.DEFAULT
    except KeyError:
        raise UnknownNameError(
            f'weights of torchvision {name!r}', weights, [w.name for w in choices]
        ) from None
    from_hub = pretrained and checkpoint is None
    check_kwargs(kwargs or {}, classifier)
    options = {**PORTED.get(name, {}), **(kwargs or {})}
    rehearse_building(lambda: models.get_model(name, weights=None, **options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            network = models.get_model(name, weights=None, **options)
        except (TypeError, ValueError) as error:
            raise UserError(
                f'torchvision cannot make {name!r} with model.backbone.kwargs={options}: {error}'
            ) from error
    head = _find_classifier(network)
    if pool:
        head = head.partition('.')[0]
        _replace_pool(network, name, pool)
    if not classifier:
        owner, _, last = head.rpartition('.')
        setattr(network.get_submodule(owner), last, nn.Identity())
    may_be_left = AUXILIARY if classifier else (head, *AUXILIARY)
    if from_hub:
        load_weights(network, _download(chosen), chosen.url, may_be_left)
    elif checkpoint is not None:
        load_weights(network, read_weights(checkpoint, use_ema), str(checkpoint), may_be_left)
    eval_transform = chosen.transforms()
    crop, resized = eval_transform.crop_size[0], eval_transform.resize_size[0]
    size = height_and_width(options.get('input_size') or getattr(network, 'image_size', crop))
    wanted = Preprocessing(
        size,
        tuple(eval_transform.mean),
        tuple(eval_transform.std),
        crop / resized,
        eval_transform.interpolation.value,
    )
    patch = getattr(network, 'patch_size', None)
    grid = (size[0] // patch, size[1] // patch) if isinstance(patch, int) else None
    layout = find_layout(
        network, roles, grid, 1 if hasattr(network, 'class_token') else 0, (head,) if classifier else ()
    )
    raw = {} if use_ema else dict(use_ema=False)  # so that old folders, without this setting, do not change
    made = Backbone(
        network,
        layout,
        wanted.with_changes(preprocessing or {}),
        dict(
            type='torchvision',
            name=name,
            tag=chosen.name,
            weights=weights,
            pretrained=pretrained,
            checkpoint=checkpoint and str(checkpoint),
            roles=dict(roles or {}),
            preprocessing=dict(preprocessing or {}),
            kwargs=options,
            classifier=classifier,
            pool=pool,
            **raw,
        ),
        wanted,
    )
    made.maps = maps_of_torchvision(network, made.sites.calls, made.preprocessing.size)
    return made


def _find_classifier(network: Any) -> str:
    """The path of the last layer, a Linear (SqueezeNet: a 1 x 1 convolution).

    Removes auxiliary classifiers.
    """
    for name in AUXILIARY:
        if getattr(network, name, None) is not None:
            setattr(network, name, None)
            network.aux_logits = False
    modules = network.named_modules()
    layers = [name for name, module in modules if isinstance(module, (nn.Linear, nn.Conv2d))]
    return layers[-1]


def _replace_pool(network: nn.Module, name: str, pool: str) -> None:
    if not isinstance(getattr(network, 'avgpool', None), nn.AdaptiveAvgPool2d):
        raise UserError(
            f'model.backbone.pool is {pool!r}, but torchvision {name!r} has no pool of maps (avgpool) to '
            'replace; leave pool out.'
        )
    network.avgpool = SelectAdaptivePool2d(pool_type=pool, flatten=True)


def _download(weights: Any) -> dict[str, torch.Tensor]:
    try:
        with silence_bounded():
            return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f'the weights {weights} are missing: {weights.url} could not be downloaded ({error}). Either '
            'give the file in model.backbone.checkpoint (of a command: --cfg-options '
            'model.backbone.checkpoint=PATH), or run once with a network.'
        ) from error
