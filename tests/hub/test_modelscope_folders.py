"""ModelScope's folders against its own model, written out from the raw tensors; what is not
ModelScope's is refused.
"""

import json
import math
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

from tests.nets import images
from vet import pipeline
from vet.core.model import ImageClassifier
from vet.errors import DataError, UserError
from vet.hub import load_modelscope

C, DEPTH, HEADS, CLASSES = 32, 3, 2, ['cat', 'dog', 'eel', 'fox']
VIT = dict(
    type='VisionTransformer',
    img_size=32,
    patch_size=8,
    embed_dim=C,
    depth=DEPTH,
    num_heads=HEADS,
    num_classes=0,
    drop_rate=0.1,
)
KINDS = {
    'none': {},
    'lora': dict(lora_length=4, lora_type='default'),
    'lora by layer': dict(lora_length=[0, 5, 2]),
    'lora nowhere': dict(lora_length=0),
    'adapter': dict(adapter_length=6),
    'adapter by layer': dict(adapter_length=[3, 0, 8]),
    'adapter and layer scales': dict(adapter_length=6, init_values=0.1),
    'prefix': dict(prefix_length=5),
    'prefix by layer': dict(prefix_length=[0, 3, 7]),
    'prompt': dict(prompt_length=4),
    'prompt by layer': dict(prompt_length=[4, 0, 2]),
    'prompt of growing length': dict(prompt_length=[1, 3, 3]),
    'prompt not at the first layer': dict(prompt_length=[0, 3, 1]),
    'side': dict(sidetune_length=C, sidetune_type='fcn4'),
    'all': dict(
        lora_length=[2, 0, 1],
        adapter_length=3,
        prefix_length=[2, 2, 0],
        prompt_length=2,
        sidetune_length=C,
        sidetune_type='FCN4',
    ),
    'pre-norm, no bias': dict(lora_length=2, pre_norm=True, qkv_bias=False, mlp_ratio=2.0),
}


def at(length, layer):
    return (length[layer] if isinstance(length, list) else length) or 0


def weights(cfg):
    """ModelScope's tensors of a configuration, every number random."""
    hidden, p = int(C * cfg.get('mlp_ratio', 4)), cfg['patch_size']
    shapes = {
        'cls_token': (1, 1, C),
        'pos_embed': (1, (cfg['img_size'] // p) ** 2 + 1, C),
        'patch_embed.proj.weight': (C, 3, p, p),
    }
    norms = ['norm']
    if cfg.get('pre_norm'):
        norms.append('norm_pre')
    else:
        shapes['patch_embed.proj.bias'] = (C,)
    for i in range(DEPTH):
        b = f'blocks.{i}'
        norms += [f'{b}.norm1', f'{b}.norm2']
        linears = {
            'attn.qkv': (3 * C, C),
            'attn.proj': (C, C),
            'mlp.fc1': (hidden, C),
            'mlp.fc2': (C, hidden),
        }
        if width := at(cfg.get('adapter_length'), i):
            linears |= {'adapter.ln1': (width, C), 'adapter.ln2': (C, width)}
        for name, (out, inside) in linears.items():
            shapes[f'{b}.{name}.weight'] = (out, inside)
            if name != 'attn.qkv' or cfg.get('qkv_bias', True):
                shapes[f'{b}.{name}.bias'] = (out,)
        if rank := at(cfg.get('lora_length'), i):
            shapes |= {
                f'{b}.attn.lora.lora_a.weight': (rank, C),
                f'{b}.attn.lora.lora_b.weight': (3 * C, rank),
            }
        if length := at(cfg.get('prefix_length'), i):
            shapes |= {
                f'{b}.attn.prefix.prefix_key': (1, length, C),
                f'{b}.attn.prefix.prefix_value': (1, length, C),
            }
        if length := at(cfg.get('prompt_length'), i):
            shapes[f'{b}.prompt.prompt_token'] = (1, length, C)
        if cfg.get('init_values'):
            shapes |= {f'{b}.ls1.gamma': (C,), f'{b}.ls2.gamma': (C,)}
    if cfg.get('sidetune_type'):
        shapes |= {'sidetune.alpha': (), 'sidetune.side.fc.weight': (C, 64), 'sidetune.side.fc.bias': (C,)}
        for stage, (inside, out) in enumerate([(3, 16), (16, 16), (16, 32), (32, 64)], 1):
            shapes[f'sidetune.side.conv{stage}.0.weight'] = (out, inside, 3, 3)
            norms.append(f'sidetune.side.conv{stage}.1')
    for name in norms:
        channels = dict(conv1=16, conv2=16, conv3=32, conv4=64).get(
            name.split('.')[-2] if '.' in name else '', C
        )
        shapes |= {f'{name}.weight': (channels,), f'{name}.bias': (channels,)}
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator)
        * (0.5 / math.sqrt(math.prod(shape[1:])) if len(shape) == 2 else 0.3)
        for name, shape in shapes.items()
    }


def features(cfg, tensors, x):
    """What ModelScope's VisionTransformerPETL computes, line by line."""

    def linear(name, x):
        return F.linear(x, tensors[f'{name}.weight'], tensors.get(f'{name}.bias'))

    def norm(name, x):
        return F.layer_norm(x, (C,), tensors[f'{name}.weight'], tensors[f'{name}.bias'], 1e-6)

    def heads(x):
        return x.reshape(len(x), -1, HEADS, C // HEADS).transpose(1, 2)

    pixels, B, scale = x, len(x), cfg.get('init_values')
    x = F.conv2d(
        x, tensors['patch_embed.proj.weight'], tensors.get('patch_embed.proj.bias'), stride=cfg['patch_size']
    )
    x = (
        torch.cat([tensors['cls_token'].expand(B, -1, -1), x.flatten(2).transpose(1, 2)], 1)
        + tensors['pos_embed']
    )
    x = norm('norm_pre', x) if cfg.get('pre_norm') else x
    for i in range(DEPTH):
        b = f'blocks.{i}'
        if prompt := at(cfg.get('prompt_length'), i):
            token = tensors[f'{b}.prompt.prompt_token'].expand(B, -1, -1)
            x = torch.cat([x, token], 1) if i == 0 else torch.cat([x[:, :-prompt], token], 1)
        y = norm(f'{b}.norm1', x)
        qkv = linear(f'{b}.attn.qkv', y)
        if at(cfg.get('lora_length'), i):
            qkv = qkv + linear(f'{b}.attn.lora.lora_b', linear(f'{b}.attn.lora.lora_a', y))
        q, k, v = map(heads, qkv.chunk(3, -1))
        if at(cfg.get('prefix_length'), i):
            k, v = (
                torch.cat([old, heads(tensors[f'{b}.attn.prefix.prefix_{name}'].expand(B, -1, -1))], 2)
                for old, name in ((k, 'key'), (v, 'value'))
            )
        attention = (q @ k.transpose(-2, -1) / math.sqrt(C // HEADS)).softmax(-1)
        y = linear(f'{b}.attn.proj', (attention @ v).transpose(1, 2).reshape(B, -1, C))
        x = x + (y * tensors[f'{b}.ls1.gamma'] if scale else y)
        h = linear(f'{b}.mlp.fc2', F.gelu(linear(f'{b}.mlp.fc1', norm(f'{b}.norm2', x))))
        h = h * tensors[f'{b}.ls2.gamma'] if scale else h
        if at(cfg.get('adapter_length'), i):
            h = h + linear(f'{b}.adapter.ln2', F.gelu(linear(f'{b}.adapter.ln1', h)))
        x = x + h
    x = norm('norm', x)[:, 0]
    if cfg.get('sidetune_type'):
        side, share = pixels, tensors['sidetune.alpha'].sigmoid()
        for stage, (stride, padding) in enumerate([(1, 1), (2, 0), (2, 0), (1, 0)], 1):
            name = f'sidetune.side.conv{stage}'
            side = F.conv2d(side, tensors[f'{name}.0.weight'], None, stride, padding)
            side = F.group_norm(side, 2, tensors[f'{name}.1.weight'], tensors[f'{name}.1.bias']).relu()
        x = share * x + (1 - share) * linear('sidetune.side.fc', side.mean((2, 3)))
    return x


def content(**settings):
    cfg = VIT | settings
    generator = torch.Generator().manual_seed(1)
    head = {
        'fc.weight': torch.randn(len(CLASSES), C, generator=generator),
        'fc.bias': torch.randn(len(CLASSES), generator=generator),
    }
    return dict(
        backbone_cfg=cfg,
        backbone_weight=weights(cfg),
        CLASSES=CLASSES,
        head_weight=head,
        head_cfg=dict(type='ClassifierHead', dim=C, num_classes=len(CLASSES), dropout_rate=0),
    )


def write(folder, file, **configuration):
    folder.mkdir(exist_ok=True)
    torch.save(file, folder / 'pytorch_model.pt')
    (folder / 'configuration.json').write_text(
        json.dumps(
            dict(
                framework='pytorch',
                task='vision-efficient-tuning',
                pipeline=dict(type='vision-efficient-tuning'),
                model=dict(type='vision-efficient-tuning', pretrained=True),
                train=dict(work_dir='/tmp/run'),
            )
            | configuration
        )
    )
    return folder


def logits(file, x):
    x = features(file['backbone_cfg'], file['backbone_weight'], x)
    return F.linear(x, file['head_weight']['fc.weight'], file['head_weight']['fc.bias'])


@pytest.mark.parametrize('kind', KINDS)
def test_each_kind_computes_what_modelscope_writes(kind, tmp_path, record_property):
    file = content(**KINDS[kind])
    model = load_modelscope(write(tmp_path / 'model', file))
    assert isinstance(model, ImageClassifier) and not model.training and model.classes == CLASSES
    with torch.no_grad():
        ours, theirs = model(images(3)), logits(file, images(3))
        record_property('difference', (ours - theirs).abs().max().item())  # for benchmarks/ecosystem.py
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
        tensors = {name: value.double() for name, value in file['backbone_weight'].items()}
        precise = model.double().backbone(images(3).double())
        assert torch.allclose(
            precise, features(file['backbone_cfg'], tensors, images(3).double()), rtol=0, atol=1e-10
        )
    tuners = sum(
        value.numel()
        for name, value in tensors.items()
        if any(part in name for part in ('lora', 'adapter', 'prefix', 'prompt', 'sidetune'))
    )
    assert model.count()['tuners'] == tuners


@pytest.mark.parametrize(
    'kind', ['lora', 'adapter', 'prefix', 'prompt', 'side', 'lora by layer', 'prompt by layer']
)
def test_the_tuner_matters(kind, tmp_path):
    """The control of the test above: without what was tuned, the logits are others."""
    file = content(**KINDS[kind])
    plain = file | dict(backbone_cfg=VIT)
    assert (logits(file, images(3)) - logits(plain, images(3))).abs().max() > 1e-2


def test_an_image_through_the_pipeline_gets_modelscopes_scores(tmp_path):
    file = content(lora_length=4)
    classify = pipeline('vision-efficient-tuning', write(tmp_path / 'model', file), device='cpu')
    image = Image.frombytes('RGB', (61, 45), bytes(i * i % 251 for i in range(61 * 45 * 3)))
    view = transforms.Compose(
        [
            transforms.Resize(36),
            transforms.CenterCrop(32),
            transforms.ToTensor(),  # 32 / 36: as 224 / 256, in whole pixels
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    with torch.no_grad():
        scores, labels = logits(file, view(image)[None])[0].softmax(-1).sort(descending=True)
    result = classify(image)
    assert result['labels'] == [CLASSES[label] for label in labels]
    assert result['scores'] == pytest.approx(scores.tolist(), abs=1e-5)
    assert classify.model.backbone.warnings() == []


def test_at_224_pixels_the_crop_is_that_of_256(tmp_path):
    model = load_modelscope(write(tmp_path / 'model', content(img_size=224, patch_size=32)))
    preprocessing = model.backbone.preprocessing
    assert (
        preprocessing.size == (224, 224)
        and int(224 / preprocessing.crop_pct) == 256
        and preprocessing.interpolation == 'bilinear'
    )


def test_the_pipeline_takes_no_other_backbone_weights(tmp_path):
    with pytest.raises(
        UserError, match='backbone is .* but .* holds the weights of its backbone. Leave `backbone` out'
    ):
        pipeline(model=write(tmp_path / 'model', content()), backbone='weights.safetensors')


# Bad input ------------------------------------------------------------------------------------------------------------


def refused(folder, text):
    with pytest.raises(DataError, match='(?s)' + text) as caught:
        load_modelscope(folder)
    assert '\n' not in str(caught.value)


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Command(Code):
    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


@pytest.mark.parametrize('kind', [Code, Command])
def test_a_pickle_with_code_is_refused_and_does_not_run(kind, tmp_path):
    for file in (kind(tmp_path / 'ran'), content() | dict(CLASSES=[kind(tmp_path / 'ran')])):
        folder = write(tmp_path / 'model', file)
        refused(
            folder,
            r'pytorch_model\.pt. is cut short, or holds more than tensors and plain values; it is refused, and nothing',
        )
        with pytest.raises(DataError, match='pytorch_model.pt'):
            pipeline('vision-efficient-tuning', folder)
        assert not (tmp_path / 'ran').exists()
    torch.load(folder / 'pytorch_model.pt', weights_only=False)  # the control: it is code, and would have run
    assert (tmp_path / 'ran').exists()


def test_a_file_cut_short(tmp_path):
    folder = write(tmp_path / 'model', content())
    data = (folder / 'pytorch_model.pt').read_bytes()
    for kept in (0, 3, 100, len(data) // 2, len(data) - 30):
        (folder / 'pytorch_model.pt').write_bytes(data[:kept])
        refused(folder, r'pytorch_model\.pt. is cut short')


@pytest.mark.parametrize(
    'change, text',
    [
        (lambda file: file.pop('head_weight'), 'missing or left over: .head_weight.'),
        (lambda file: file.update(optimizer={}), 'missing or left over: .optimizer.'),
        (lambda file: file.update(CLASSES='abcd'), 'has a str as CLASSES'),
        (lambda file: file.update(CLASSES=['a', 'b']), r"has 2 CLASSES, but head_cfg\['num_classes'\] is 4"),
        (
            lambda file: file['backbone_weight'].pop('norm.bias'),
            r"such as 'backbone_weight\.norm\.bias' \(given nothing, needed \(32,\)\)",
        ),
        (
            lambda file: file['backbone_weight'].pop('blocks.1.attn.lora.lora_b.weight'),
            r"'backbone_weight\.blocks\.1\.attn\.lora\.lora_b\.weight' \(given nothing",
        ),
        (
            lambda file: file['backbone_weight'].update({'blocks.1.adapter.ln1.bias': torch.zeros(2)}),
            r"'backbone_weight\.blocks\.1\.adapter\.ln1\.bias' \(given \(2,\), needed nothing\)",
        ),
        (
            lambda file: file['backbone_weight'].update(
                {'blocks.0.attn.lora.lora_a.weight': torch.zeros(3, C)}
            ),
            r"lora_a\.weight' \(given \(3, 32\), needed \(4, 32\)\)",
        ),
        (
            lambda file: file['backbone_weight'].update({'cls_token': 'x'}),
            r'has a str as backbone_weight\.cls_token, which must be a tensor',
        ),
        (
            lambda file: file['head_weight'].update({'fc.weight': torch.zeros(4, 8)}),
            r"'head_weight\.fc\.weight' \(given \(4, 8\)",
        ),
        (lambda file: file['backbone_cfg'].update(depth=2), r'blocks\.2\..*needed nothing'),
        (lambda file: file['backbone_cfg'].update(depth='3'), r"has '3' as backbone_cfg\['depth'\]"),
        (
            lambda file: file['backbone_cfg'].update(lora_length=[4, 4]),
            r"has \[4, 4\] as backbone_cfg\['lora_length'\]; allowed: an int, or one for each",
        ),
        (
            lambda file: file['backbone_cfg'].update(lora_length=-1),
            r"has -1 as backbone_cfg\['lora_length'\]",
        ),
        (
            lambda file: file['backbone_cfg'].update(lora_length='4'),
            r"has '4' as backbone_cfg\['lora_length'\]",
        ),
        (
            lambda file: file['backbone_cfg'].update(num_heads=5),
            r'cannot be built from its backbone_cfg and head_cfg: timm cannot make',
        ),
        (
            lambda file: file['backbone_cfg'].update(num_classes=1000),
            r"has 1000 as backbone_cfg\['num_classes'\]; allowed: 0",
        ),
        (lambda file: file['backbone_cfg'].update(fc_norm=True), r"has True as backbone_cfg\['fc_norm'\]"),
        (
            lambda file: file['backbone_cfg'].update(global_pool='avg'),
            r"has 'avg' as backbone_cfg\['global_pool'\]",
        ),
        (
            lambda file: file['backbone_cfg'].update(sidetune_type='alexnet'),
            r"has 'alexnet' as backbone_cfg\['sidetune_type'\]",
        ),
        (
            lambda file: file['backbone_cfg'].update(block_fn='x'),
            r"has backbone_cfg\['block_fn'\], which is no setting",
        ),
        (
            lambda file: file['backbone_cfg'].update(weight_init='../../other.pt'),
            r"has '\.\./\.\./other\.pt' as 'weight_init', a path out of",
        ),
    ],
)
def test_what_is_not_modelscopes_is_refused_by_its_key(change, text, tmp_path):
    file = content(lora_length=4)
    change(file)
    refused(write(tmp_path / 'model', file), r'pytorch_model\.pt.*' + text)


@pytest.mark.parametrize(
    'configuration, text',
    [
        (
            dict(model=dict(type='vision-efficient-tuning', checkpoint='../other.pt')),
            r"has '\.\./other\.pt' as 'model\.checkpoint', a path out of",
        ),
        (
            dict(model=dict(pretrained_cfg=dict(files=['a.pt', '/etc/passwd']))),
            r"has '/etc/passwd' as 'model\.pretrained_cfg\.files'",
        ),
        (dict(dataset=dict(path='data\\..\\..\\x')), "as 'dataset.path'"),
        (dict(_base_=['run.py']), "asks for '_base_', which could run code"),
        (dict(custom_imports=dict(imports=['run'])), "asks for 'custom_imports'"),
    ],
)
def test_a_configuration_that_climbs_out_or_runs_code_is_refused(configuration, text, tmp_path):
    refused(write(tmp_path / 'model', content(), **configuration), r'configuration\.json.*' + text)


def test_broken_configuration_and_missing_files(tmp_path):
    folder = write(tmp_path / 'model', content())
    (folder / 'configuration.json').write_text('{"model": ')
    refused(folder, r'configuration\.json. is not valid JSON')
    (folder / 'configuration.json').unlink()
    refused(folder, 'is no model folder: configuration.json cannot be read')
    (folder / 'pytorch_model.pt').unlink()
    refused(folder, r'pytorch_model\.pt. cannot be read: No such file')
