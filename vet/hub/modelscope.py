"""Reads ModelScope's folders of vision-efficient-tuning models: configuration.json and pytorch_model.pt.

pytorch_model.pt is a pickle of data: dict(backbone_cfg, backbone_weight, head_cfg, head_weight, CLASSES). The
backbone is timm's ViT. The tuners are vet's tuners with other names for their tensors; `RENAMED` lists the
names. Only prompts of unequal lengths have no counterpart in vet. They are in this file.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import torch
from torch import nn

from vet.core.backbone import Backbone, weights_sha256
from vet.core.budget import bounded
from vet.core.model import ImageClassifier, load_into
from vet.core.permits import ENTRIES, require_plain_settings
from vet.core.site import Site
from vet.core.tensor_file import require_regular, require_stored
from vet.core.tuner import Tuner
from vet.errors import DataError, UserError, shown
from vet.files import JsonObject, refuse_links
from vet.hub.contents import require_texts
from vet.hub.file_names import CONFIGURATION, WEIGHTS
from vet.hub.model_folder import read_json
from vet.registry import BACKBONES, HEADS, TUNERS

PARTS: JsonObject = dict(
    backbone_cfg=Mapping,
    backbone_weight=Mapping,
    head_cfg=Mapping,
    head_weight=Mapping,
    CLASSES=(list, tuple),
)
TO_TIMM = (
    'img_size',
    'patch_size',
    'in_chans',
    'embed_dim',
    'depth',
    'num_heads',
    'mlp_ratio',
    'qkv_bias',
    'init_values',
    'no_embed_class',
    'pre_norm',
)
LENGTHS = ('lora_length', 'adapter_length', 'prefix_length', 'prompt_length')
ONLY: dict[str, tuple] = dict(  # the allowed values of these settings
    num_classes=(0,),
    global_pool=('token',),
    class_token=(True,),
    fc_norm=(None, False),
    sidetune_type=(None, 'fcn4', 'FCN4'),
)
NO_EFFECT = (
    'type',
    'drop_rate',
    'attn_drop_rate',
    'drop_path_rate',
    'weight_init',
    'lora_type',
    'adapter_type',
    'prefix_type',
    'prompt_type',
)
PREPROCESSING = dict(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_pct=224 / 256, interpolation='bilinear'
)
# the name of a tuner's tensor in vet, as a regular expression -> its name in ModelScope
RENAMED = {
    r'(blocks\.\d+\.attn)\.qkv\.A': r'\1.lora.lora_a.weight',
    r'(blocks\.\d+\.attn)\.qkv\.B': r'\1.lora.lora_b.weight',
    r'(blocks\.\d+)\.(?:mlp|ls2)\.down\.(weight|bias)': r'\1.adapter.ln1.\2',
    r'(blocks\.\d+)\.(?:mlp|ls2)\.up\.(weight|bias)': r'\1.adapter.ln2.\2',
    r'(blocks\.\d+\.attn)\.qkv\.(key|value)': r'\1.prefix.prefix_\2',
    r'(blocks\.\d+)\.prompts': r'\1.prompt.prompt_token',
    r'backbone\.a': r'sidetune.alpha',
    r'backbone\.side\.([01])\.(\w+)': r'sidetune.side.conv1.\1.\2',
    r'backbone\.side\.3\.(\w+)': r'sidetune.side.conv2.0.\1',
    r'backbone\.side\.4\.(\w+)': r'sidetune.side.conv2.1.\1',
    r'backbone\.side\.6\.(\w+)': r'sidetune.side.conv3.0.\1',
    r'backbone\.side\.7\.(\w+)': r'sidetune.side.conv3.1.\1',
    r'backbone\.side\.9\.(\w+)': r'sidetune.side.conv4.0.\1',
    r'backbone\.side\.10\.(\w+)': r'sidetune.side.conv4.1.\1',
    r'backbone\.side\.14\.(\w+)': r'sidetune.side.fc.\1',
}


def is_modelscope(folder: str | Path) -> bool:
    """Whether the folder is ModelScope's, by its files."""
    return (Path(folder) / WEIGHTS).is_file()


def load_modelscope(folder: str | Path) -> ImageClassifier:
    """The classifier of a ModelScope folder, in eval mode on the CPU: normalised images (B, 3, H, W) ->
    logits (B, K).

    The classifier's preprocessing is that of ModelScope's pipeline: short side 256, centre crop 224,
    ImageNet's mean and std. DataError, with the file and the key, for anything that is not ModelScope's.
    Nothing in the folder is executed.
    """
    path = Path(folder) / WEIGHTS
    refuse_links(Path(folder), (WEIGHTS, CONFIGURATION))
    given = _read(path)
    source = str(path)
    configuration = read_json(
        Path(folder) / CONFIGURATION, 'Give the folder of a ModelScope vision-efficient-tuning model.'
    )
    _refuse_paths(configuration, str(Path(folder) / CONFIGURATION))
    for section in ('backbone_cfg', 'head_cfg'):
        require_texts(given[section], f'{source!r}: {section}')
        _refuse_paths(given[section], source)
        require_plain_settings(given[section], f'{source!r}: {section}')
    cfg = _known(given['backbone_cfg'], source)
    classes = _classes(given['CLASSES'], source)
    count = given['head_cfg'].get('num_classes', len(classes))
    if count != len(classes):
        raise DataError(f"{source!r} has {len(classes)} CLASSES, but head_cfg['num_classes'] is {count!r}.")
    try:
        with bounded(repr(source)):
            backbone: Backbone = BACKBONES.build(
                dict(
                    type='timm',
                    name='vit_base_patch16_224',
                    pretrained=False,
                    preprocessing=PREPROCESSING,
                    kwargs=dict({key: cfg[key] for key in TO_TIMM if key in cfg}, weight_init='skip'),
                )
            )
            head = HEADS.build(
                dict(type='Linear', dropout=given['head_cfg'].get('dropout_rate') or 0.0),
                in_features=backbone.num_features,
                num_classes=len(classes),
            )
            model = ImageClassifier(backbone, _tuners(cfg), head, classes)
    except UserError as error:
        raise DataError(f'{source!r} cannot be built from its backbone_cfg and head_cfg: {error}') from error
    load_into(_tensors(model), _given_tensors(given, source), source)
    backbone.published = backbone.preprocessing
    backbone.identity['sha256'] = weights_sha256(backbone.network.state_dict())
    return model.eval()


def _classes(given: Iterable[object], source: str) -> list[str]:
    for name in given:
        if not isinstance(name, str | int) or len(str(name)) > 1000:
            raise DataError(
                f'{source!r} has {shown(name)} among its CLASSES; allowed: names of at most 1,000 characters.'
            )
    return [str(name) for name in given]


def _read(path: Path) -> JsonObject:
    """The parts of the file, each of its type. No code in the file is run."""
    try:
        require_regular(path)
        require_stored(path)
        given = torch.load(path, map_location='cpu', weights_only=True)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f'{str(path)!r} cannot be read: {error.strerror or error}.') from error
    except Exception as error:  # pickle, zipfile and torch raise errors of many kinds
        raise DataError(
            f'{str(path)!r} is cut short, or holds more than tensors and plain values; it is refused, and '
            f'nothing in it was run ({type(error).__name__}: {str(error).partition(chr(10))[0]}).'
        ) from error
    if not isinstance(given, dict) or set(given) != set(PARTS):
        wrong = (
            sorted(map(shown, set(given) ^ set(PARTS))) if isinstance(given, dict) else [type(given).__name__]
        )
        raise DataError(
            f'{str(path)!r} is not the file of a ModelScope model: it must hold {", ".join(PARTS)} and '
            f'nothing else; missing or left over: {", ".join(wrong)}.'
        )
    for key, kind in PARTS.items():
        if not isinstance(given[key], kind):
            raise DataError(
                f'{str(path)!r} has a {type(given[key]).__name__} as {key}; no file of ModelScope has this.'
            )
    return given


def _refuse_paths(value: object, source: str, key: str = '') -> None:
    """DataError for a path that leads out of the folder, anywhere in `value`.

    Absolute paths are refused too, in the section 'model'.
    """
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _refuse_paths(inner, source, f'{key}.{name}' if key else str(name))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _refuse_paths(inner, source, key)
    elif isinstance(value, str):
        parts = PurePosixPath(value.replace('\\', '/')).parts
        if '..' in parts or (key.startswith('model.') and parts[:1] == ('/',)):
            raise DataError(f'{source!r} has {value!r} as {key!r}, a path out of its folder, and is refused.')


def _known(cfg: JsonObject, source: str) -> JsonObject:
    """`cfg`, with a list of lengths by layer. DataError for a setting that vet's backbone does not have."""
    depth = cfg.get('depth', 12)
    if type(depth) is not int or not 0 < depth <= ENTRIES:
        raise DataError(
            f"{source!r} has {shown(depth)} as backbone_cfg['depth']; allowed: an int from 1 to {ENTRIES:,}."
        )
    for key, value in cfg.items():
        allowed = ONLY.get(key)
        if allowed and value not in allowed:
            raise DataError(
                f'{source!r} has {value!r} as backbone_cfg[{key!r}]; allowed: '
                f'{", ".join(map(repr, allowed))}.'
            )
        if not allowed and key not in (*TO_TIMM, *LENGTHS, *NO_EFFECT, 'sidetune_length'):
            raise DataError(f"{source!r} has backbone_cfg[{key!r}], which is no setting of ModelScope's ViT.")
    known = dict(cfg)
    for key in LENGTHS:
        lengths = cfg.get(key) or 0
        known[key] = list(lengths) if isinstance(lengths, (list, tuple)) else [lengths] * depth
        if len(known[key]) != depth or not all(
            isinstance(length, int) and length >= 0 for length in known[key]
        ):
            raise DataError(
                f'{source!r} has {lengths!r} as backbone_cfg[{key!r}]; allowed: an int, or one for each of '
                f'the {depth} layers.'
            )
    return known


def _tuners(cfg: JsonObject) -> list[Tuner]:
    prompt = cfg['prompt_length']
    entries = dict(
        lora_length=dict(type='LoRA', rank=cfg['lora_length']),
        adapter_length=dict(
            type='Adapter',
            width=cfg['adapter_length'],
            at='blocks.*.ls2' if cfg.get('init_values') else 'mlp',
        ),
        prefix_length=dict(type='Prefix', length=cfg['prefix_length']),
        prompt_length=dict(type='VPT', length=prompt)
        if len(set(prompt)) == 1
        else dict(type=ReplacedPrompts, length=prompt),
    )
    chosen = [entry for key, entry in entries.items() if any(cfg[key])]
    return [
        TUNERS.build(entry) for entry in chosen + [dict(type='SideTuning')] * bool(cfg.get('sidetune_type'))
    ]


def _tensors(model: ImageClassifier) -> dict[str, torch.Tensor]:
    """The model's tensors under ModelScope's names.

    Examples: 'backbone_weight.blocks.0.attn.lora.lora_a.weight', 'head_weight.fc.bias'.
    """
    tensors = dict(model.backbone.network.state_dict())
    for tuner in model.tuners:
        for name, value in tuner.state().items():
            plain = name.removeprefix('deltas.')
            matches = ((re.fullmatch(pattern, plain), new) for pattern, new in RENAMED.items())
            name = next(match.expand(new) for match, new in matches if match)
            tensors[name] = (
                value[None]
                if value.dim() == 2 and re.search(r'\.(prefix_\w+|prompt_token)$', name)
                else value
            )
    return {f'backbone_weight.{name}': value for name, value in tensors.items()} | {
        f'head_weight.{name}': value for name, value in model.head.state_dict().items()
    }


def _given_tensors(given: JsonObject, source: str) -> dict[str, torch.Tensor]:
    tensors = {
        f'{section}.{name}': value
        for section in ('backbone_weight', 'head_weight')
        for name, value in given[section].items()
    }
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise DataError(f'{source!r} has a {type(value).__name__} as {name}, which must be a tensor.')
    return tensors


class ReplacedPrompts(Tuner):
    """[x, P_0] before block 0. Before each later block i with prompts, P_i replaces the last len(P_i) tokens.

    VPT does neither of the following. Tokens flow on through blocks without prompts. A length need not equal
    the length of the block before.
    """

    identity_at_start = False

    def __init__(self, length: list[int]):
        super().__init__('block')
        self.length = length

    def tune(self, site: Site) -> None:
        length = site.at_depth(self.length, 'prompt_length')
        if length:
            self.before(site, LastTokens(length, site.in_shape[-1], replace=site.depth > 0))


class LastTokens(nn.Module):
    """(B, N, C) -> (B, N + P, C): learned tokens behind the others.

    With `replace`, (B, N, C) -> (B, N, C): learned tokens in place of the last P.
    """

    def __init__(self, length: int, channels: int, replace: bool):
        super().__init__()
        self.replace = replace
        self.prompts = nn.Parameter(torch.zeros(length, channels))

    def forward(self, x_BNC: torch.Tensor) -> torch.Tensor:
        image_BNC = x_BNC[:, : -len(self.prompts)] if self.replace else x_BNC
        return torch.cat([image_BNC, self.prompts.expand(len(x_BNC), -1, -1).to(x_BNC.dtype)], 1)
