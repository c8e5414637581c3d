"""Model folders that a stranger means ill, as changes of a good one's configuration.json and files."""

import copy
import json
import os

import torch
from safetensors.torch import load_file

from tests.hub.sealed import seal

URL = 'http://127.0.0.1:9/a.pth'
DEEP = 100_000
BACKTRACKS = '((.+)+)+X'
TIMM = dict(
    type='timm',
    name='vit_tiny_patch16_224',
    pretrained=False,
    sha256='0' * 64,
    kwargs=dict(img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=2),
)
TORCHVISION = dict(type='torchvision', name='resnet18', pretrained=False, sha256='0' * 64)
LORA = dict(type='LoRA', rank=2)


def changed(configuration, path, value):
    """A copy with `value` at the dotted path; parts of it that are not there are made."""
    made = copy.deepcopy(configuration)
    place, *names = made, *path.split('.')
    for name in names[:-1]:
        place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
    if isinstance(place, list):
        place[int(names[-1])] = value
    else:
        place[names[-1]] = value
    return made


def _of_a_backbone(outside):
    """(what, entry of model.backbone): what names a URL, a path, code, or a network of no size."""
    site = str(outside)
    for base in (TIMM, TORCHVISION):
        kwargs = dict(base.get('kwargs', {}))
        for key, value in dict(
            cache_dir=site,
            pretrained_cfg=dict(url=URL),
            pretrained_cfg_overlay=dict(file=f'{site}/a.pth'),
            checkpoint_path=f'{site}/a.pth',
            features_only=True,
            out_indices=[0],
            scriptable=True,
            exportable=True,
            no_jit=True,
            block_fn='os.system',
            hf_hub_id='a/b',
            url=URL,
            file='/etc/passwd',
            weights='DEFAULT',
            weights_backbone=URL,
            progress=True,
            pretrained=True,
            model_args=dict(depth=2),
            cfg=dict(url=URL),
            pretrained_strict=False,
            pretrained_filter_fn='os.system',
            pruned=True,
            feature_cfg=dict(feature_cls='os.system'),
            hybrid_backbone=URL,
            device='cuda',
            dtype='float16',
            conv_stem_configs=[],
            norm_layer='os.system',
            act_layer='__import__("os")',
            embed_layer=['a/b'],
            global_pool='http://a',
            img_size=10**9,
            embed_dim=10**9,
            depth=10**9,
            num_heads=0,
            patch_size=0,
            mlp_ratio=1e300,
            init_values=float('nan'),
            num_classes=-1,
            depths=[10**9] * 4,
            in_chans=10**7,
            drop_path_rate='1',
            qkv_bias=[[[[1]]]],
            class_token={},
            image_size=10**8,
            width_per_group=10**6,
            groups=10**6,
            layers=[10**6] * 4,
        ).items():
            yield f'{base["type"]} kwargs.{key}', {**base, 'kwargs': {**kwargs, key: value}}
        for name in (
            'hf-hub:a/b',
            'hf_hub:timm/vit_tiny_patch16_224.augreg_in21k',
            f'local-dir:{site}',
            '../vit',
            '/etc/passwd',
            'a:b',
            'vit_tiny_patch16_224.http://a',
            'C:\\vit',
            '',
            'x' * 10**6,
            'vit\n\x1b[2J',
            7,
            None,
            ['vit'],
            {'a': 1},
        ):
            yield f'{base["type"]} name {str(name)[:20]!r}', {**base, 'name': name}
        for checkpoint in (
            URL,
            'file:///etc/passwd',
            '../../x.pth',
            'x.pth',
            '/dev/zero',
            '/dev/stdin',
            f'{site}/pipe',
            f'{site}/../a.pth',
            '//host/share/a.pth',
            '\\\\host\\share\\a.pth',
            '/proc/self/environ',
            '/etc/passwd',
            7,
            [],
            f'{site}/none.pth',
        ):
            yield f'{base["type"]} checkpoint {checkpoint!r}', {**base, 'checkpoint': checkpoint}
        for key, value in dict(
            roles=dict(block=BACKTRACKS),
            preprocessing=dict(size=10**9),
            classifier='yes',
            pretrained=URL,
            cache_dir=site,
            url=URL,
            tag='../../x',
            sha256=URL,
            weights=URL,
            pool='os.system',
            kwargs=[1],
        ).items():
            yield f'{base["type"]} {key}', {**base, key: value}
        for what, value in (
            ('crop_pct', 1e-9),
            ('mean', [float('nan')] * 3),
            ('std', [0, 0, 0]),
            ('size', [1, -1]),
            ('size', [10**6] * 2),
            ('interpolation', 'os.system'),
            ('url', URL),
            ('std', [1e-45] * 3),
            ('size', True),
        ):
            yield f'{base["type"]} preprocessing.{what} {value}', {**base, 'preprocessing': {what: value}}
    yield 'big image', {**TIMM, 'kwargs': {**TIMM['kwargs'], 'img_size': 4096, 'patch_size': 1}}
    yield (
        'many blocks',
        {**TIMM, 'kwargs': {**TIMM['kwargs'], 'depth': 10**6, 'embed_dim': 2, 'num_heads': 1}},
    )
    yield 'wide', {**TIMM, 'kwargs': {**TIMM['kwargs'], 'embed_dim': 10**6}}
    for kind in (
        'os.system',
        'builtins.eval',
        '../timm',
        7,
        None,
        ['timm'],
        {'type': 'timm'},
        'vet.backbones.timm.timm_backbone',
    ):
        yield f'backbone type {kind!r}', {**TIMM, 'type': kind}


def _of_the_tuners():
    """(what, list of model.tuners)"""
    for rank in (
        10**9,
        10**30,
        -1,
        0,
        True,
        1e300,
        float('nan'),
        float('inf'),
        '8',
        None,
        [],
        [8] * 10**5,
        {BACKTRACKS: 8},
        {f'{BACKTRACKS}{i}': 8 for i in range(2000)},
        {'(a{1000}){1000}{1000}': 8},
        {'(?=a)': 8},
        {'[': 8},
        {'\\1': 8},
        {'': 8},
    ):
        yield f'rank {str(rank)[:30]}', [dict(type='LoRA', rank=rank)]
    for at in (
        '*' * 900,
        '*a' * 400,
        'block[--1]',
        'block[99999999999999999999:]',
        'block[' + '9' * 5000 + ']',
        '',
        7,
        [],
        [7],
        None,
        {},
        ['attn.qkv'] * 10**5,
        [['attn.qkv']],
        '[' * 900,
        'a[' * 400,
        '../x',
        URL,
    ):
        yield f'at {str(at)[:20]}', [dict(type='LoRA', rank=2, at=at)]
    for entry in (
        dict(type='MoLoRA', experts=10**6),
        dict(type='FacT', rank=10**6),
        dict(type='VPT', length=10**6),
        dict(type='Adapter', width=10**6),
        dict(type='BorderPrompt', pad=10**5),
        dict(type='Partial', names=BACKTRACKS),
        dict(type='Partial', names=['(']),
        dict(type='Partial', blocks=10**6),
        dict(type='Partial', indices=['a', {}]),
        dict(type='LoKr', factor=10**6),
        dict(type='PixelBranch', rank=10**6),
        dict(type='LadderSide', reduction=10**6),
        dict(type='ARC', width=10**6),
        dict(type='GPS', k=10**6),
        dict(type='SCT', channels=10**6),
        dict(type='SideTuning', side={**TIMM, 'kwargs': dict(pretrained_cfg=dict(url=URL))}),
        dict(type='SideTuning', side=URL),
        dict(type='SideTuning', side={**TIMM, 'checkpoint': '/dev/zero'}),
        dict(type='SideTuning', side=dict(type='os.system')),
        dict(type='SideTuning', side={**TIMM, 'name': 'hf-hub:a/b'}),
        dict(type='DyLoRA', use=10**6),
        dict(type='LoHa', rank=10**6),
        dict(type='Convpass', width=10**6),
        dict(type='RepAdapter', groups=10**6),
        dict(type='os.system'),
        dict(type='eval'),
        dict(type=7),
        {},
        7,
        None,
        'LoRA',
        ['LoRA'],
        dict(type='LoRA', rank=2, url=URL),
        dict(type='LoRA', dropout='a' * 10**5),
        dict(type='LoRA', alpha=float('nan')),
        dict(type='LoRA', alpha={BACKTRACKS: 1.0}),
        dict(type='LoRA', seed=10**40, variant='vera'),
    ):
        yield f'tuner {str(entry)[:40]}', [entry]
    yield '2,000 tuners', [LORA] * 2000
    yield 'tuners are a dict', dict(a=LORA)


def _of_the_rest(outside):
    """(what, path, value)"""
    deep = []
    for _ in range(200):
        deep = [deep]
    for path, values in {
        'model.head': (
            dict(type='MLP', hidden=10**9),
            dict(type='MLP', hidden=10**6),
            dict(type='os.system'),
            7,
            dict(type='Linear', dropout='x'),
            dict(type='Linear', path='/etc/passwd'),
            dict(type='Linear', in_features=10**9),
            dict(type='MLP', hidden=-1),
        ),
        'model.shared': (BACKTRACKS, '(', 7, '.' * 10**6, '(?=a)'),
        'model.tasks': (
            dict(a=7),
            {'a.b': dict(backbone=TIMM, head=dict(type='Linear'))},
            dict(a=dict(backbone=TIMM)),
            [1],
            7,
            dict(keys=dict(backbone=TIMM, head=dict(type='Linear'))),
        ),
        'model.url': (URL,),
        'model.custom_imports': (dict(imports=['os']),),
        'model': ([], 7, None, 'x'),
        'classes': (
            7,
            {},
            [7] * 5,
            ['a' * 10**6] * 5,
            [],
            [['a']],
            ['a'] * 200_000,
            ['\ud800'] * 5,
            [None] * 5,
            None,
        ),
        'preprocessing': (
            dict(size=[10**6] * 2),
            dict(url=URL),
            7,
            [],
            dict(mean='x'),
            dict(std=[0.0] * 3),
            dict(crop_pct=0),
        ),
        'evaluation': (
            7,
            [],
            dict(transform=7),
            dict(transform=[dict(type='Lambda', lambd='os.system')]),
            dict(transform=[7]),
            dict(transform=[dict(type='Resize', size=10**9)]),
            dict(transform=[dict(type='Pad', padding=4000)] * 16),
            dict(transform=[dict(type='RandomZoomOut', side_range=[900, 900], p=1)]),
            dict(transform=[dict(type='os.system')]),
            dict(transform=[dict(type='Compose', transforms=[])]),
            dict(transform=[dict(type='Resize')] * 1000),
        ),
        'custom_imports': (dict(imports=['os']),),
        '_base_': (['/etc/passwd'],),
        'env_variables': (dict(PATH='x'),),
        'format': (4, 10**9, '2', None, True, -1.5),
        'sha256': (7, dict(a=URL), {'tuner.safetensors': '0' * 64}, []),
        'deep': (deep,),
        'vet_version': ('99.0', 'x' * 10**5, {}),
        'metrics': (dict(accuracy='\x1b[2J'), 7, deep),
    }.items():
        for i, value in enumerate(values):
            yield f'{path} {i}', path, value


def _files(folder, outside):
    """(what, function that spoils the files)"""
    config, tensors = folder / 'configuration.json', folder / 'tuner.safetensors'

    def instead(path, make):
        def spoil():
            path.unlink()
            make(path)

        return spoil

    header = json.dumps(dict(a=dict(dtype='F32', shape=[1], data_offsets=[0, 4]))).encode()
    for name, path in (('configuration', config), ('tensors', tensors)):
        yield f'{name} is a pipe', instead(path, os.mkfifo)
        yield f'{name} is a device', instead(path, lambda path: path.symlink_to('/dev/zero'))
        yield f'{name} is a folder', instead(path, lambda path: path.mkdir())
        yield f'{name} is a link to itself', instead(path, lambda path: path.symlink_to(path))
        yield f'{name} is a link out', instead(path, lambda path: path.symlink_to('/etc/passwd'))
        yield f'{name} is empty', instead(path, lambda path: path.touch())
        yield f'{name} is sparse, 1 TiB', instead(path, lambda path: (path.touch(), os.truncate(path, 2**40)))
    for i, text in enumerate(
        (
            b'[' * DEEP,
            b'{"a":' * DEEP,
            b'{"model":' + b'[' * DEEP,
            b'9' * 10**5,
            b'\xff\xfe',
            b'"' + b'x' * 10**7 + b'"',
            b'null',
            b'NaN',
            b'{"model": {"backbone": {}, "tuners": [], "head": {}}, "classes": []}',
            b'[' * 30 + b']' * 30,
            b'{}' * 3,
            b'\x00' * 100,
        )
    ):
        yield f'JSON {i}', lambda text=text: config.write_bytes(text)
    for i, data in enumerate(
        (
            (2**62).to_bytes(8, 'little'),
            (2**32).to_bytes(8, 'little') + b'{}',
            b'',
            b'\x00' * 8,
            len(header).to_bytes(8, 'little') + header,
            (10**6).to_bytes(8, 'little') + b'[' * 10**6,
            b'\x80\x04\x95' + b'a' * 100,
            *(
                (len(text := json.dumps({'head.fc.bias': entry}).encode())).to_bytes(8, 'little')
                + text
                + b'\x00' * 20
                for entry in (
                    dict(dtype='F32', shape=[2**62, 2**62], data_offsets=[0, 20]),
                    dict(dtype='F32', shape=[-5], data_offsets=[0, 20]),
                    dict(dtype='F32', shape=[5], data_offsets=[0, 2**60]),
                    dict(dtype='F32', shape=[5], data_offsets=[20, 0]),
                    dict(dtype='OBJECT', shape=[5], data_offsets=[0, 20]),
                    dict(dtype='F32', shape=5, data_offsets=[0, 20]),
                    dict(dtype='C64', shape=[5], data_offsets=[0, 20]),
                    7,
                )
            ),
        )
    ):
        yield f'safetensors {i}', lambda data=data: tensors.write_bytes(data)


def _further(good, folder, outside):
    """(what, function that makes the folder so): kinds that were thought of after the first mend."""
    config, tensors = folder / 'configuration.json', folder / 'tuner.safetensors'

    def says(path, value):
        return lambda: config.write_text(json.dumps(changed(good, path, value)))

    def holds(change):
        return lambda: seal(
            folder, change({name: tensor.clone() for name, tensor in load_file(tensors).items()})
        )

    for i, steps in enumerate(
        (
            [dict(type='Normalize', mean=[0, 0, 0], std=[0, 0, 0])],
            [dict(type='ToDtype', dtype='x')],
            [dict(type='Grayscale', num_output_channels=1)],
            [dict(type='Normalize', mean=[0] * 7, std=[1] * 7)],
            [dict(type='Resize', size=[4, 4])],
            [dict(type='CenterCrop', size=0)],
            [dict(type='Pad', padding=-5)],
            [dict(type='RGB')] * 16,
            [dict(type='Resize', size=4000)],
            [dict(type='ToTensor'), dict(type='ToImage')],
            [dict(type='Resize', interpolation='os.system')],
            [dict(type='EvaluationCrop', crop_pct=1e-6)],
        )
    ):
        yield f'steps {i}', says('evaluation', dict(transform=steps))
    for i, prepared in enumerate(
        (
            dict(size=[64, 64]),
            dict(mean=[0.5] * 4),
            dict(size=[1, 2048]),
            dict(crop_pct=0.2),
            dict(std=[1000.0]),
        )
    ):
        yield f'prepared {i}', says('preprocessing', prepared)
    yield 'huge numbers', holds(lambda state: {name: tensor.fill_(3e38) for name, tensor in state.items()})
    yield '100,000 tensors', holds(lambda state: state | {f'a{i}': torch.zeros(0) for i in range(100_000)})
    yield 'names of control characters', holds(lambda state: state | {'\x1b[2J\n': torch.zeros(1)})
    yield 'empty tensors', holds(lambda state: {name: tensor[:0] for name, tensor in state.items()})
    for name in ('keys', 'forward', '__class__', 'training', 'ａ', 'None'):
        part = dict(backbone=good['model']['backbone'], head=good['model']['head'])
        yield (
            f'task {name}',
            lambda name=name, part=part: config.write_text(
                json.dumps(
                    {
                        **good,
                        'classes': {name: good['classes']},
                        'model': {**good['model'], 'tasks': {name: part}},
                    }
                )
            ),
        )
    many = {f't{i}': dict(backbone=good['model']['backbone'], head=good['model']['head']) for i in range(256)}
    yield (
        '256 tasks',
        lambda: config.write_text(
            json.dumps(
                {**good, 'classes': {name: ['a'] for name in many}, 'model': {**good['model'], 'tasks': many}}
            )
        ),
    )
    yield 'UTF-16', lambda: config.write_text(json.dumps(good), encoding='utf-16')
    yield 'BOM', lambda: config.write_text(json.dumps(good), encoding='utf-8-sig')
    yield 'twice a key', lambda: config.write_text(json.dumps(good)[:-1] + ', "model": 7}')
    yield '20 MB', lambda: config.write_text(json.dumps({**good, 'x': 'y' * 20_000_000}))
    for i, roles in enumerate(
        (
            dict(block=''),
            dict(block='.*'),
            {f'r{i}': '.*' for i in range(900)},
            {'': ''},
            dict(block='(((a{9}){9}){9}){9}'),
        )
    ):
        yield f'roles {i}', says('model.backbone', {**TIMM, 'roles': roles})
    for kind in ('Full', 'LadderSide', 'VPT', 'Adapter', 'SideTuning', 'GPS', 'LinearProbe', 'AdaLoRA'):
        yield f'64 x {kind}', says('model.tuners', [dict(type=kind)] * 64)
    for name in ('vit_7b_patch16_dinov3',):
        kind = 'timm'
        yield (
            f'large {name}',
            says('model.backbone', dict(type=kind, name=name, pretrained=False, sha256='0' * 64)),
        )
        yield (
            f'large beside {name}',
            says(
                'model.tuners', [dict(type='SideTuning', side=dict(type=kind, name=name, pretrained=False))]
            ),
        )
    yield 'checkpoint is the folder', says('model.backbone', {**TIMM, 'checkpoint': str(folder)})
    yield 'checkpoint is its tensors', says('model.backbone', {**TIMM, 'checkpoint': str(tensors)})
    yield 'checkpoint is its JSON', says('model.backbone', {**TIMM, 'checkpoint': str(config)})
    for i, (section, value) in enumerate(
        (
            ('seed', 10**40),
            ('seed', 'x'),
            ('train', dict(transform=[dict(type='Lambda', lambd='os.system')])),
            ('train', 7),
            ('dataset', 7),
            ('train', dict(dataloader=dict(workers_per_gpu=10**12))),
            ('train', dict(stages=[dict(epochs=1, train=BACKTRACKS)])),
            (
                'dataset',
                dict(
                    train=dict(
                        type='MultiTask', tasks=dict(a=dict(type='torchvision', name='CIFAR10', root='/tmp'))
                    )
                ),
            ),
            ('dataset', dict(test=dict(type='CSV', file=f'{outside}/pipe'))),
            ('evaluation', dict(metrics=['os.system'])),
            ('evaluation', dict(every=10**30)),
            ('train', dict(optimizer=dict(type='os.system'))),
            ('train', dict(compile='__import__')),
        )
    ):
        yield f'run {i}', says(section, value)


def hostile_folders(folder, outside):
    """(what, function that makes `folder` so): some 300 of them. `folder` is whole before each."""
    path = folder / 'configuration.json'
    good = json.loads(path.read_text())

    def writes(configuration):
        def write():
            path.write_text(json.dumps(configuration))

        return write

    for what, entry in _of_a_backbone(outside):
        yield what, writes(changed(good, 'model.backbone', entry))
    for what, tuners in _of_the_tuners():
        yield what, writes(changed(good, 'model.tuners', tuners))
    for what, place, value in _of_the_rest(outside):
        yield what, writes(changed(good, place, value))
    yield from _files(folder, outside)
    yield from _further(good, folder, outside)
