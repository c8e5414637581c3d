"""timm's models as backbones, by their names, with timm's own weights and preprocessing."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch

from vet.backbones.class_token import class_token_only, modules_of_class_token, pools_class_token
from vet.backbones.kwargs import check_kwargs, height_and_width
from vet.backbones.libraries import patches_of
from vet.backbones.maps import maps_of_timm
from vet.backbones.roles import find_layout
from vet.backbones.timm_files import load_file, read_again
from vet.core.backbone import Backbone, FeaturesOnly, Preprocessing, WatchedResampling
from vet.core.budget import rehearse_building
from vet.core.permits import FLAG, NOTHING, PREPROCESSING, ROLES, SETTINGS, TOKENS, dicts, permits, text
from vet.errors import DataError, UnknownNameError, UserError
from vet.offline import cache_alone_without_network, silence_bounded
from vet.registry import BACKBONES

# The kwargs that a model folder may name: sizes, depths and flags of networks. Other kwargs may name a URL, a
# path, a file, a cache, weights or code (pretrained_cfg, cache_dir, checkpoint_path, features_only, …). Some
# configure a whole network at once.
ARCHITECTURE = """
    act_layer attn_drop_rate attn_ratio avg_down base_width block_reduce_first bottle_ratio cardinality
    channels class_token conv_bias conv_mlp conv_ratio depth depth_mult depth_token_only depths dim dims
    down_kernel_size drop_block_rate drop_path_rate drop_rate dynamic_img_pad dynamic_img_size embed_dim
    embed_dims expand_ratio fc_norm final_norm fix_stem global_pool groups growth_rate head_bias head_dim
    head_hidden_size head_init_scale head_norm head_norm_first heads img_scale img_size in_chans init_values
    kernel_size kernel_sizes key_dim layer_scale_init_value layers ls_init_value mlp_bias mlp_ratio
    mlp_ratios neck_chans no_embed_class norm_eps norm_layer num_blocks num_classes num_features num_heads
    num_init_features num_kv_heads num_reg_tokens output_stride pad_type patch_drop_rate patch_norm
    patch_size pool_include_prefix pool_size pos_drop_rate pos_embed pre_norm proj_bias proj_drop_rate
    qk_norm qkv_bias qkv_fused rel_pos_type reg_tokens rope_rotate_half rope_temperature rope_theta
    rope_type scale_attn_inner_norm scale_mlp_norm se_ratio serial_depths sr_ratios stem_chs stem_size
    stem_type stem_width strict_img_size stride strides swiglu_align_to swiglu_mlp transformer_depths
    use_abs_pos use_rel_pos use_rel_pos_bias use_rot_pos_emb use_shared_rel_pos_bias weight_init width
    width_factor width_mult widths window_ratio window_size window_sizes zero_init_last""".split()
KWARGS = dicts(
    dict.fromkeys(ARCHITECTURE, SETTINGS) | dict.fromkeys(('reg_tokens', 'num_reg_tokens'), TOKENS),
    'sizes, depths and flags of a network, at most 1,024 register tokens (see vet/backbones/timm.py)',
)


@BACKBONES.register_module(name='timm')
@permits(
    name=text(r'\w+(\.\w+)?', 'the name of a timm network, with or without the tag of its weights'),
    pretrained=FLAG,
    roles=ROLES,
    preprocessing=PREPROCESSING,
    kwargs=NOTHING | KWARGS,
    classifier=FLAG,
    use_ema=FLAG,
)
def timm_backbone(
    name: str,
    pretrained: bool = True,
    checkpoint: str | Path | None = None,
    roles: Mapping[str, str] | None = None,
    preprocessing: Mapping[str, object] | None = None,
    kwargs: Mapping[str, object] | None = None,
    classifier: bool = False,
    use_ema: bool = True,
) -> Backbone:
    """`timm.create_model(name, num_classes=0, **kwargs)`, frozen.

    name: timm's, with the tag of the weights: 'vit_base_patch16_224.orig_in21k'.
    checkpoint: a file to read the weights from, instead of timm's hub: .safetensors or .pth in timm's names
        or in the layout of OpenAI's or OpenCLIP's CLIP, SigLIP or DINOv2, or Google's .npz.
    pretrained: False, without a checkpoint: random weights, drawn from a fixed seed.
    roles: role names to regular expressions over module paths, for a family whose roles are not found.
    preprocessing: changes to timm's settings (size, mean, std, crop_pct, interpolation, and gray_range, the
        levels of gray images of more than 8 bits that become black and white, such as (0, 4095) for 12 bits).
    kwargs: arguments of the network. dict(img_size=128) also sets the size of the preprocessing. For a
        convolutional network, dict(global_pool='catavgmax') gives the features cat(mean, max), 2 C.
    classifier: True keeps the pretrained classifier, with timm's or kwargs' num_classes. The output is its
        logits.
    use_ema: if a checkpoint holds weights and their average over the training: True takes the average, False
        the weights.
    """
    if not timm.is_model(name):
        raise UnknownNameError(
            'timm model', name, timm.list_models(), 'timm.list_models("*name*") finds names.'
        )
    from_hub = pretrained and checkpoint is None
    options: dict[str, Any] = dict(kwargs or {})
    check_kwargs(options, classifier, 'in_chans')
    output: dict[str, Any] = {} if classifier else dict(num_classes=0)
    if from_hub and not timm.models.is_model_pretrained(name):
        raise UserError(
            f'timm has no weights for {name!r}; it has '
            f'{timm.list_pretrained(name.partition(".")[0] + ".*")}. Choose one of these, or give '
            'model.backbone.checkpoint a file.'
        )
    # timm would silently drop a classifier that has another number of classes
    if classifier and from_hub and 'num_classes' in options:
        raise UserError(
            f'model.backbone.kwargs.num_classes is {options["num_classes"]}, but the classifier of {name!r} '
            'has a fixed number of classes. Leave num_classes out, or give a file as '
            'model.backbone.checkpoint.'
        )
    rehearse_building(lambda: timm.create_model(name, **output, **options))
    timm.models.set_pretrained_check_hash(True)  # else timm keeps a file that was cut, for ever
    with (
        torch.random.fork_rng(devices=[]),
        silence_bounded(),
        cache_alone_without_network() if from_hub else nullcontext(),
    ):
        torch.manual_seed(0)
        try:
            with WatchedResampling() as resampling:
                network: Any = timm.create_model(name, pretrained=from_hub, **output, **options)
            read = read_again(network) if from_hub and resampling.seen else None
        except UserError:
            raise
        except OSError as error:
            raise DataError(_not_downloaded(name, error)) from error
        # timm's constructors check little, so any of their errors is about an argument
        except Exception as error:
            if 'invalid hash value' in str(error):  # torch.hub has removed the file
                raise DataError(_not_downloaded(name, error)) from error
            raise UserError(
                f'timm cannot make {name!r} with model.backbone.kwargs={options}: '
                f'{type(error).__name__}: {error}'
            ) from error
    heads = (network.pretrained_cfg or {}).get('classifier') or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    if classifier and not (heads and network.num_classes):
        raise UserError(
            f'{name!r} has no classifier to keep; leave model.backbone.classifier out, or give a checkpoint '
            f'with a classifier, and kwargs=dict(num_classes=…).'
        )
    if checkpoint is not None:
        read = load_file(network, name, Path(checkpoint).expanduser(), () if classifier else heads, use_ema)
    patches = patches_of(network)
    settings = timm.data.resolve_model_data_config(network)
    size = options.get('img_size') or getattr(patches, 'img_size', None) or settings['input_size'][1:]
    wanted = Preprocessing(
        height_and_width(size),
        settings['mean'],
        settings['std'],
        settings['crop_pct'],
        settings['interpolation'],
    )
    chosen = wanted.with_changes(preprocessing or {})
    grid = getattr(patches, 'grid_size', None)
    if patches is not None and getattr(network, 'dynamic_img_size', False):
        grid = patches.dynamic_feat_size(chosen.size)
    layout = find_layout(
        network, roles, grid, getattr(network, 'num_prefix_tokens', 0), heads if classifier else ()
    )
    tag = name.partition('.')[2] or (network.pretrained_cfg or {}).get('tag', '')
    remarks = list(_remarks(network, name, settings)) if pretrained or checkpoint is not None else []
    for remark in remarks:
        warnings.warn(remark, stacklevel=2)
    raw = {} if use_ema else dict(use_ema=False)  # so that old folders, without this setting, do not change
    made = Backbone(
        network,
        layout,
        chosen,
        dict(
            type='timm',
            name=name,
            tag=tag,
            pretrained=pretrained,
            checkpoint=checkpoint and str(checkpoint),
            roles=dict(roles or {}),
            preprocessing=dict(preprocessing or {}),
            kwargs=options,
            classifier=classifier,
            **raw,
        ),
        wanted,
        remarks,
        read,
    )
    made.maps = maps_of_timm(network)
    made.features_only = (
        FeaturesOnly(class_token_only, modules_of_class_token) if pools_class_token(network) else None
    )
    return made


def _remarks(network: Any, name: str, settings: Mapping[str, object]) -> Iterator[str]:
    """Facts in timm's settings of the weights that neither the network nor the evaluation crop follows."""
    notes = str((network.pretrained_cfg or {}).get('notes'))
    kinds = {type(module).__name__ for module in network.modules()}
    if 'QuickGELU' in notes and 'QuickGELU' not in kinds:
        yield (
            f'{name} computes with GELU, but its weights were trained with QuickGELU, x sigmoid(1.702 x); '
            f'{name.replace("_clip_", "_clip_quickgelu_")!r} has it.'
        )
    if settings['crop_mode'] == 'squash':
        yield (
            f'{name} sees the centre of its images, but timm squashes them to a square for its weights; '
            f'evaluation.transform=[dict(type="Resize")] does that.'
        )


def _not_downloaded(name: str, error: Exception) -> str:
    settings: Any = timm.get_pretrained_cfg(name)
    source = (
        f'{settings.hf_hub_id} (file model.safetensors) on the Hugging Face hub'
        if settings.hf_hub_id
        else settings.url
    )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f'the weights of {name!r} are missing: {source} could not be downloaded ({reason}). Either give the '
        'file (.safetensors, .pth or .npz) in model.backbone.checkpoint (of vet fit, check and tune: '
        '--checkpoint PATH; of another command: --cfg-options model.backbone.checkpoint=PATH), or run once '
        'with a network.'
    )
