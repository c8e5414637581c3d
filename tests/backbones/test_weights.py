"""Where a backbone's weights come from: files of several formats, none of which may run code, or the hub."""

import hashlib
import io
import pickle
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.nets import VIT, images
from vet.errors import DataError, UnknownNameError, UserError
from vet.registry import BACKBONES

NAME = 'vit_tiny_patch16_224'


def build(**config: object):
    config.setdefault('kwargs', VIT)
    return BACKBONES.build(dict(dict(type='timm', name=NAME, pretrained=False), **config))


@pytest.fixture(scope='module')
def donor():
    """A whole classifier of 5 classes, with other weights than a fresh backbone has."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return timm.create_model(NAME, num_classes=5, **VIT).eval()


def expected(donor) -> torch.Tensor:
    with torch.no_grad():
        return donor.forward_head(donor.forward_features(images(2)), pre_logits=True)


def features(backbone) -> torch.Tensor:
    with torch.no_grad():
        return backbone.eval()(images(2))


WRITERS = {
    'safetensors': lambda state, path: save_file(state, path.with_suffix('.safetensors')),
    'pth': lambda state, path: torch.save(state, path.with_suffix('.pth')),
    'state_dict': lambda state, path: torch.save(dict(state_dict=state, epoch=3), path.with_suffix('.pth')),
    'model': lambda state, path: torch.save(dict(model=state), path.with_suffix('.pth')),
    'module.': lambda state, path: torch.save(
        {f'module.{k}': v for k, v in state.items()}, path.with_suffix('.pth')
    ),
    '_orig_mod.': lambda state, path: torch.save(
        {f'_orig_mod.module.{k}': v for k, v in state.items()}, path.with_suffix('.pth')
    ),
    'lightning': lambda state, path: torch.save(
        dict(
            state_dict={f'model.{k}': v for k, v in state.items()},
            epoch=3,
            **{'pytorch-lightning_version': '2'},
        ),
        path.with_suffix('.pth'),
    ),
    'nested': lambda state, path: torch.save(
        dict(model=dict(state_dict={f'module.{k}': v for k, v in state.items()}), epoch=1),
        path.with_suffix('.pth'),
    ),
    'averaged': lambda state, path: torch.save(
        dict(model_ema={f'module.{k}': v for k, v in state.items()} | dict(n_averaged=torch.tensor(3))),
        path.with_suffix('.pth'),
    ),
    'legacy': lambda state, path: torch.save(
        state, path.with_suffix('.pth'), _use_new_zipfile_serialization=False
    ),
}


def written(state: dict, path, writer: str = 'safetensors'):
    WRITERS[writer](state, path)
    return next(path.parent.glob(f'{path.name}.*'))


@pytest.mark.parametrize('writer', WRITERS)
@pytest.mark.parametrize('with_classifier', [True, False])
def test_checkpoint_gives_the_donors_features_and_one_identity(donor, tmp_path, writer, with_classifier):
    state = {k: v for k, v in donor.state_dict().items() if with_classifier or not k.startswith('head.')}
    backbone = build(checkpoint=written(state, tmp_path / 'weights', writer))
    assert torch.equal(features(backbone), expected(donor))
    assert (
        backbone.identity['sha256'] == build(checkpoint=written(state, tmp_path / 'other')).identity['sha256']
    )


@pytest.mark.parametrize(
    'raw, average',
    [
        ('model', 'model_ema'),
        ('state_dict', 'state_dict_ema'),
        ('model', 'ema'),
        ('model_state_dict', 'ema_state_dict'),
        ('model', 'state_dict_ema'),
    ],
)
def test_of_weights_and_their_average_timms_choice_is_taken_and_told(donor, tmp_path, raw, average):
    other = {
        name: value + 0.1 if value.is_floating_point() else value
        for name, value in donor.state_dict().items()
    }
    path = tmp_path / 'both.pth'
    torch.save({raw: other, average: donor.state_dict(), 'epoch': 3}, path)
    with pytest.warns(
        UserWarning, match=f"holds weights, '{raw}', and their average .*'{average}': '{average}' is used"
    ):
        averaged = build(checkpoint=path)
    assert torch.equal(features(averaged), expected(donor)) and 'use_ema' not in averaged.identity
    if average in ('state_dict_ema', 'model_ema'):
        theirs = timm.models.load_state_dict(str(path), weights_only=True)
        assert all(torch.equal(theirs[name], donor.state_dict()[name]) for name in theirs)
    with pytest.warns(
        UserWarning,
        match=f"'{raw}' is used, and '{average}' is not. model.backbone.use_ema=True uses '{average}'",
    ):
        plain = build(checkpoint=path, use_ema=False)
    assert plain.identity['use_ema'] is False and plain.identity['sha256'] != averaged.identity['sha256']
    donor.load_state_dict(other)
    assert torch.equal(features(plain), expected(donor))


@pytest.mark.parametrize('other', ['teacher', 'ema_state', 'ema_params'])
def test_other_weights_of_the_same_network_are_told(donor, tmp_path, other):
    path = tmp_path / 'both.pth'
    twin = {f'module.{name}': value + 1 for name, value in donor.state_dict().items()}
    torch.save({'model': donor.state_dict(), other: twin, 'optimizer': dict(state={})}, path)
    with pytest.warns(
        UserWarning, match=f"the same names under 'model' and under '{other}': 'model' is used"
    ):
        assert torch.equal(features(build(checkpoint=path)), expected(donor))


def test_one_set_of_weights_is_not_told_of(donor, tmp_path, recwarn):
    build(checkpoint=written(donor.state_dict(), tmp_path / 'w', 'averaged'))
    assert not [w for w in recwarn if 'average' in str(w.message)]


@pytest.mark.parametrize(
    'config, text',
    [
        (dict(kwargs=dict(num_classes=7)), r'kwargs\.num_classes is 7, but the backbone gives features'),
        (
            dict(type='torchvision', name='resnet18', kwargs=dict(num_classes=7)),
            r'kwargs\.num_classes is 7, but',
        ),
        (dict(kwargs=dict(in_chans=1)), r'kwargs\.in_chans is 1, but vet reads every image as RGB'),
        (dict(kwargs=dict(global_pool='')), r'gives \(197, 192\) per image, not pooled features'),
        (
            dict(name='resnet18', kwargs=dict(global_pool='')),
            r'gives \(512, 7, 7\) per image, not pooled features',
        ),
        (dict(kwargs=dict(global_pool='nonsense')), "timm cannot make 'vit_tiny_patch16_224'"),
        (dict(kwargs=dict(depth=1), preprocessing=dict(size=100)), r'does not take images of \(100, 100\)'),
        (
            dict(type='torchvision', name='vit_b_16', kwargs={}, preprocessing=dict(size=100)),
            r'does not take images of \(100, 100\)',
        ),
        (dict(name='resnet18', kwargs={}, preprocessing=dict(size=0)), 'size'),
    ],
    ids=str,
)
def test_kwargs_and_sizes_that_a_backbone_cannot_have_are_refused_by_name(config, text):
    with pytest.raises(UserError, match=text):
        build(**config)


def test_identity_changes_with_one_bit_of_one_weight(donor, tmp_path):
    state = dict(donor.state_dict())
    first = build(checkpoint=written(state, tmp_path / 'first')).identity['sha256']
    changed = state['blocks.1.mlp.fc2.bias'].clone()
    changed[0] = torch.nextafter(changed[0], torch.tensor(9.0))
    second = build(
        checkpoint=written(state | {'blocks.1.mlp.fc2.bias': changed}, tmp_path / 'second')
    ).identity['sha256']
    assert first != second


@pytest.mark.parametrize(
    'change, text',
    [
        (
            lambda s: {k: v for k, v in s.items() if 'blocks.2.' not in k},
            r'missing: blocks\.2\.norm1\.weight.*\(12\)',
        ),
        (
            lambda s: s | {'blocks.3.norm1.weight': torch.ones(32)},
            r'not of this network: blocks\.3\.norm1\.weight \(1\)',
        ),
        (
            lambda s: s | {'norm.weight': torch.ones(48)},
            r'of another shape: norm\.weight is \(48,\), needed \(32,\)',
        ),
        (
            lambda s: timm.create_model(
                'resnet18', num_classes=0, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8)
            ).state_dict(),
            r'another architecture than VisionTransformer here.*missing',
        ),
        (
            lambda s: {f'encoder.{k}': v for k, v in s.items()} | {'queue': torch.ones(3)},
            r"stand below the prefix 'encoder\.'\. Save them without the prefix.*removeprefix\('encoder\.'\)",
        ),
        (
            lambda s: {
                f'{whose}.backbone.{k}': v.clone() for whose in ('teacher', 'student') for k, v in s.items()
            },
            r"below the prefix 'student\.backbone\.' \(also below 'teacher\.backbone\.'\)",
        ),
    ],
    ids=['missing', 'left over', 'shape', 'resnet', 'prefix', 'two prefixes'],
)
def test_checkpoint_of_another_architecture_is_refused(donor, tmp_path, change, text):
    path = written(change(dict(donor.state_dict())), tmp_path / 'weights')
    with pytest.raises(DataError, match=f'(?s)weights.safetensors.*{text}'):
        build(checkpoint=path)


@pytest.mark.parametrize('writer', ['safetensors', 'pth', 'legacy'])
@pytest.mark.parametrize('share', [0.0, 0.3, 0.9])
def test_truncated_checkpoint_is_refused_by_name(donor, tmp_path, writer, share):
    path = written(donor.state_dict(), tmp_path / 'cut', writer)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r'weight file .*cut\.'):
        build(checkpoint=path)


class Mischief:
    """Writes a file when unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return exec, (f'open({self.path!r}, "w").close()',)


@pytest.mark.parametrize('how', ['torch', 'pickle'])
def test_pickle_with_code_is_refused_and_not_run(tmp_path, how):
    path, trace = tmp_path / 'evil.pth', tmp_path / 'ran'
    if how == 'torch':
        torch.save(dict(state_dict=Mischief(str(trace))), path)
    else:
        path.write_bytes(pickle.dumps(Mischief(str(trace))))
    with pytest.raises(DataError, match=r'evil\.pth'):
        build(checkpoint=path)
    assert not trace.exists()


@pytest.mark.parametrize(
    'content', [[torch.ones(1)], dict(a=1), torch.ones(2), dict(state_dict=dict(a='b'))], ids=str
)
def test_file_that_is_no_dict_of_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(DataError, match='not a dict of tensors'):
        build(checkpoint=tmp_path / 'x.pth')


NUMBERS = {
    'int8': (lambda weight: weight.to(torch.int8), 'of another kind of number: .* is torch.int8'),
    'bool': (lambda weight: weight.bool(), 'of another kind of number'),
    'complex': (lambda weight: weight.to(torch.complex64), 'of another kind of number'),
    'nan': (lambda weight: weight * float('nan'), 'not finite'),
    'inf': (lambda weight: weight / 0, 'not finite'),
    'sparse': (lambda weight: weight.to_sparse(), 'sparse or quantized'),
    'meta': (lambda weight: weight.to('meta'), 'without its numbers'),
}


@pytest.mark.parametrize('change, text', NUMBERS.values(), ids=NUMBERS)
def test_weights_that_are_no_floats_or_not_finite_are_refused(donor, tmp_path, change, text):
    state = dict(donor.state_dict())
    name = next(name for name, weight in state.items() if name.endswith('weight') and weight.dim() == 2)
    path = tmp_path / 'x.pth'
    torch.save(state | {name: change(state[name])}, path)
    with pytest.raises(DataError, match=text):
        build(checkpoint=path)


@pytest.mark.parametrize('change', [torch.Tensor.half, torch.Tensor.double])
def test_weights_of_another_precision_are_taken(donor, tmp_path, change):
    path = tmp_path / 'x.pth'
    torch.save({name: change(weight) for name, weight in donor.state_dict().items()}, path)
    assert torch.allclose(features(build(checkpoint=path)), expected(donor), atol=0.1)


def test_a_dict_of_several_networks_is_named(donor, tmp_path):
    state = dict(donor.state_dict())
    torch.save(dict(student=state, teacher=state, epoch=3), tmp_path / 'x.pth')
    with pytest.raises(DataError, match=r'student \(dict\), teacher \(dict\), epoch \(int\).*alone'):
        build(checkpoint=tmp_path / 'x.pth')


@pytest.mark.parametrize('name', ['none.pth', 'none.safetensors', 'none.npz'])
@pytest.mark.parametrize('type', ['timm', 'torchvision'])
def test_checkpoint_that_does_not_exist_is_named(tmp_path, name, type):
    config = dict(type='torchvision', name='squeezenet1_1', kwargs={}) if type == 'torchvision' else {}
    with pytest.raises(DataError, match=f'{name}.* does not exist'):
        build(checkpoint=tmp_path / name, **config)


def google_arrays(
    rng: np.random.Generator, width: int = 32, heads: int = 2, depth: int = 3
) -> dict[str, np.ndarray]:
    """A ViT in the layout of Google's released .npz files."""

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32) / 4

    arrays = {
        'embedding/kernel': draw(8, 8, 3, width),
        'embedding/bias': draw(width),
        'cls': draw(1, 1, width),
        'Transformer/posembed_input/pos_embedding': draw(1, 17, width),
        'Transformer/encoder_norm/scale': draw(width),
        'Transformer/encoder_norm/bias': draw(width),
        'head/kernel': draw(width, 7),
        'head/bias': draw(7),
    }
    for i in range(depth):
        block, head = f'Transformer/encoderblock_{i}', width // heads
        for norm in ('LayerNorm_0', 'LayerNorm_2'):
            arrays |= {f'{block}/{norm}/scale': draw(width), f'{block}/{norm}/bias': draw(width)}
        for part in ('query', 'key', 'value'):
            arrays |= {
                f'{block}/MultiHeadDotProductAttention_1/{part}/kernel': draw(width, heads, head),
                f'{block}/MultiHeadDotProductAttention_1/{part}/bias': draw(heads, head),
            }
        arrays |= {
            f'{block}/MultiHeadDotProductAttention_1/out/kernel': draw(heads, head, width),
            f'{block}/MultiHeadDotProductAttention_1/out/bias': draw(width),
            f'{block}/MlpBlock_3/Dense_0/kernel': draw(width, 4 * width),
            f'{block}/MlpBlock_3/Dense_0/bias': draw(4 * width),
            f'{block}/MlpBlock_3/Dense_1/kernel': draw(4 * width, width),
            f'{block}/MlpBlock_3/Dense_1/bias': draw(width),
        }
    return arrays


def test_google_npz_lands_in_the_right_weights(tmp_path):
    arrays = google_arrays(np.random.default_rng(0))
    np.savez(tmp_path / 'vit.npz', **arrays)
    network = build(checkpoint=tmp_path / 'vit.npz').network
    block = 'Transformer/encoderblock_1'
    qkv = np.concatenate(
        [
            arrays[f'{block}/MultiHeadDotProductAttention_1/{part}/kernel'].reshape(32, 32).T
            for part in ('query', 'key', 'value')
        ]
    )
    assert np.array_equal(network.blocks[1].attn.qkv.weight.numpy(), qkv)
    assert np.array_equal(
        network.blocks[1].mlp.fc1.weight.numpy(), arrays[f'{block}/MlpBlock_3/Dense_0/kernel'].T
    )
    assert np.array_equal(
        network.blocks[2].norm2.bias.numpy(), arrays['Transformer/encoderblock_2/LayerNorm_2/bias']
    )
    assert np.array_equal(
        network.patch_embed.proj.weight.numpy(), arrays['embedding/kernel'].transpose(3, 2, 0, 1)
    )
    assert np.array_equal(network.pos_embed.numpy(), arrays['Transformer/posembed_input/pos_embedding'])
    assert np.array_equal(network.norm.weight.numpy(), arrays['Transformer/encoder_norm/scale'])


def npz_without(key: str):
    return {
        name: value
        for name, value in google_arrays(np.random.default_rng(0)).items()
        if not name.startswith(key)
    }


@pytest.mark.parametrize(
    'arrays',
    [
        npz_without('Transformer/encoderblock_2'),
        google_arrays(np.random.default_rng(0), depth=4),
        google_arrays(np.random.default_rng(0), width=64),
        dict(a=np.ones(2)),
        dict(a=np.array([{}], dtype=object)),
    ],
    ids=['a block less', 'a block more', 'wider', 'other arrays', 'pickled objects'],
)
def test_npz_that_does_not_fit_is_refused_by_name(tmp_path, arrays):
    np.savez(tmp_path / 'odd.npz', **arrays)
    with pytest.raises(DataError, match=r'odd\.npz holds no Google \.npz weights of VisionTransformer'):
        build(checkpoint=tmp_path / 'odd.npz')


def test_npz_with_a_number_that_is_not_finite_is_refused(tmp_path):
    arrays = google_arrays(np.random.default_rng(0))
    arrays['cls'] = np.full_like(arrays['cls'], np.nan)
    np.savez(tmp_path / 'nan.npz', **arrays)
    with pytest.raises(DataError, match=r'nan\.npz holds weights that are not finite, in cls_token'):
        build(checkpoint=tmp_path / 'nan.npz')


def test_npz_that_is_truncated_is_refused_by_name(tmp_path):
    np.savez(tmp_path / 'cut.npz', **google_arrays(np.random.default_rng(0)))
    whole = (tmp_path / 'cut.npz').read_bytes()
    (tmp_path / 'cut.npz').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r'cut\.npz'):
        build(checkpoint=tmp_path / 'cut.npz')


@pytest.mark.parametrize(
    'source', [dict(), dict(type='torchvision', name='squeezenet1_1', kwargs={})], ids=['timm', 'torchvision']
)
def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone(source):
    torch.manual_seed(5)
    first = build(**source)
    after = torch.rand(1)
    torch.manual_seed(6)
    assert build(**source).identity['sha256'] == first.identity['sha256']
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)


def test_torchvision_checkpoint_with_its_classifier(tmp_path):
    from torchvision import models

    network = models.squeezenet1_1().eval()
    save_file(network.state_dict(), tmp_path / 'w.safetensors')
    backbone = build(
        type='torchvision', name='squeezenet1_1', kwargs={}, checkpoint=tmp_path / 'w.safetensors'
    )
    x = images(1, size=224)
    with torch.no_grad():
        wanted = network.features(x)
    assert backbone.num_features == 512
    assert torch.equal(backbone.network.features(x), wanted)


def test_weights_from_tensorflow_have_their_own_normalisation_within(tmp_path):
    """As torchvision makes GoogLeNet for its weights; with training-time classifiers in the file, which
    are left out.
    """
    from torchvision import models

    torch.manual_seed(0)
    donor = models.googlenet(transform_input=True, aux_logits=True, init_weights=False)
    for module in donor.modules():
        module.momentum = (
            1.0  # of the batch norms: else their statistics are no one's, and what passes fades to nothing
        )
    donor.train()(images(8, 64))
    donor.eval()
    save_file(donor.state_dict(), tmp_path / 'w.safetensors')
    backbone = build(
        type='torchvision',
        name='googlenet',
        kwargs={},
        checkpoint=tmp_path / 'w.safetensors',
        preprocessing=dict(size=64),
    )
    donor.fc, x = torch.nn.Identity(), images(2)
    mean, std = (
        torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.no_grad():
        assert torch.equal(features(backbone), donor(x))
        donor.transform_input = False
        assert torch.allclose(features(backbone), donor((x * std + mean - 0.5) / 0.5), atol=1e-3)
        assert not torch.allclose(features(backbone), donor(x), atol=1e-2)


@pytest.mark.parametrize(
    'config, error, text',
    [
        (
            dict(name='vit_tinny_patch16_224'),
            UnknownNameError,
            "unknown timm model 'vit_tinny_patch16_224'. Did you mean 'vit_tiny_patch16_224'",
        ),
        (
            dict(kwargs=dict(depht=2)),
            UserError,
            "timm cannot make 'vit_tiny_patch16_224' with model.backbone.kwargs.*depht",
        ),
        (
            dict(name='convnext_tiny', kwargs=dict(depths=(2, 1), dims=(8, 8))),
            UserError,
            "timm cannot make 'convnext_tiny'",
        ),
        (dict(name='vit_tiny_patch16_224.none', pretrained=True), UserError, 'vit_tiny_patch16_224.none'),
        (
            dict(type='torchvision', name='resnet19', kwargs={}),
            UnknownNameError,
            "torchvision classifier 'resnet19'. Did you mean",
        ),
        (
            dict(type='torchvision', name='resnet18', weights='V9', kwargs={}),
            UnknownNameError,
            'Allowed: IMAGENET1K_V1',
        ),
        (
            dict(type='torchvision', name='resnet18', kwargs=dict(dept=2)),
            UserError,
            "torchvision cannot make 'resnet18'.*dept",
        ),
        (dict(type='tim'), UnknownNameError, "unknown backbone 'tim'. Did you mean 'timm'"),
    ],
    ids=str,
)
def test_names_and_arguments_that_do_not_exist_are_explained(config, error, text):
    with pytest.raises(error, match=text):
        build(**config)


def test_missing_weights_offline_are_told_without_a_pause(tmp_path, monkeypatch, no_pause):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    # the port nobody answers
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(
        DataError,
        match=r"the weights of 'vit_tiny_patch16_224\.augreg_in21k' are missing: timm/vit_tiny.*"
        r'could not be downloaded.*model\.backbone\.checkpoint=PATH',
    ):
        BACKBONES.build(dict(type='timm', name='vit_tiny_patch16_224.augreg_in21k'))
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_missing_torchvision_weights_offline_are_told(tmp_path, monkeypatch):
    from urllib.error import URLError

    monkeypatch.setenv('TORCH_HOME', str(tmp_path))

    def refuse(*_, **__):
        raise URLError('no network')

    monkeypatch.setattr('torch.hub.urlopen', refuse)
    with pytest.raises(
        DataError, match=r'squeezenet1_1-\w+\.pth could not be downloaded.*no network.*checkpoint=PATH'
    ):
        BACKBONES.build(dict(type='torchvision', name='squeezenet1_1'))


@pytest.fixture
def weights_server(tmp_path, monkeypatch):
    """(the bodies that a server on the loopback gives, one after another; its URL of a file with a hash)."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            whole, sent = bodies.pop(0)
            self.send_response(200)
            self.send_header('Content-Length', str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[:sent])

        def log_message(self, *args):
            pass

    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
    yield bodies, f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def test_weights_of_timm_that_were_cut_begin_again(donor, tmp_path, monkeypatch, weights_server):
    """Of a network whose weights are at a URL, and not on the hub."""
    bodies, address = weights_server
    file = io.BytesIO()
    torch.save({key: value for key, value in donor.state_dict().items() if not key.startswith('head.')}, file)
    data = file.getvalue()
    name = 'deit_tiny_patch16_224.fb_in1k'
    url = f'{address}/vit-{hashlib.sha256(data).hexdigest()[:8]}.pth'
    monkeypatch.setattr('timm.models._builder._resolve_pretrained_source', lambda _: ('url', url))
    bodies += [(data, len(data) // 2), (data, len(data))]
    with pytest.raises(DataError, match='are missing.*could not be downloaded .*invalid hash value'):
        build(name=name, pretrained=True)
    assert not list((tmp_path / 'torch').rglob('*.*'))
    assert torch.equal(features(build(name=name, pretrained=True)), expected(donor))


def test_a_silent_server_of_weights_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    waits = []

    def waiting(*_, **__):
        waits.append(socket.getdefaulttimeout())
        raise TimeoutError('timed out')

    monkeypatch.setattr('torch.hub.urlopen', waiting)
    with pytest.raises(DataError, match='could not be downloaded .*timed out'):
        BACKBONES.build(dict(type='torchvision', name='squeezenet1_1'))
    assert waits == [10] and socket.getdefaulttimeout() is None


def test_cached_weights_are_used_offline(donor, tmp_path, monkeypatch):
    import huggingface_hub

    folder = tmp_path / 'models--timm--vit_tiny_patch16_224.augreg_in21k'
    snapshot = folder / 'snapshots' / ('0' * 40)
    snapshot.mkdir(parents=True)
    (folder / 'refs').mkdir()
    (folder / 'refs' / 'main').write_text('0' * 40)
    state = {k: v for k, v in donor.state_dict().items() if not k.startswith('head.')}
    save_file(state, snapshot / 'model.safetensors')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://127.0.0.1:9')
    backbone = build(name='vit_tiny_patch16_224.augreg_in21k', pretrained=True)
    assert torch.equal(features(backbone), expected(donor))


def test_preprocessing_is_the_weights_own():
    plain, clip = build(), build(name='vit_base_patch16_clip_224.openai')
    assert plain.preprocessing.size == (32, 32) and plain.preprocessing.mean == (0.5, 0.5, 0.5)
    assert clip.preprocessing.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    assert build(preprocessing=dict(mean=(0.1, 0.2, 0.3))).preprocessing.mean == (0.1, 0.2, 0.3)


def test_tokens_and_grid_are_told_to_the_sites():
    small = dict(img_size=28, embed_dim=32, depth=1, num_heads=2)
    site = build(name='vit_small_patch14_reg4_dinov2', kwargs=small).sites.find('block')[0]
    assert (site.grid, site.num_prefix_tokens, tuple(site.in_shape)) == ((2, 2), 5, (9, 32))
    distilled = build(name='deit_tiny_distilled_patch16_224').sites.find('block')[0]
    assert (distilled.grid, distilled.num_prefix_tokens) == ((4, 4), 2)
    torchvision = build(type='torchvision', name='vit_b_32', kwargs=dict(image_size=64)).sites.find('block')[
        0
    ]
    assert (torchvision.grid, torchvision.num_prefix_tokens, tuple(torchvision.in_shape)) == (
        (2, 2),
        1,
        (5, 768),
    )
