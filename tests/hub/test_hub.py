"""Models by id: pushed to a hub and read from one, through huggingface_hub's own client against a hub
on the loopback.
"""

import json
import os
import shutil
import socket
import sys
import threading
from functools import partial
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vet
from tests.hub.fake_hub import TOKEN, FakeHub
from tests.hub.sealed import seal
from tests.nets import VIT, images
from vet import pipeline
from vet.core.assemble import build_classifier
from vet.core.model import ImageClassifier
from vet.errors import DataError, UserError
from vet.hub import find_folder, from_pretrained, push_to_hub
from vet.hub.model_folder import load_model, save_model
from vet.registry import BACKBONES

IMAGE = Image.new('L', (8, 8), 90)
NOBODY = 'http://127.0.0.1:9'  # the port nobody answers


@pytest.fixture
def folder(trainer, tmp_path):
    """A copy of the quickstart's model folder."""
    return shutil.copytree(trainer.folder.output, tmp_path / 'folder')


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the client, which uses no other protocol than HTTP."""
    for name, value in (
        ('HF_HUB_CACHE', str(tmp_path / 'cache')),
        ('HF_HUB_DISABLE_XET', True),
        ('HF_TOKEN_PATH', str(tmp_path / 'none')),
    ):
        monkeypatch.setattr(f'huggingface_hub.constants.{name}', value, raising=False)  # by the version
    monkeypatch.delenv('HF_TOKEN', raising=False)
    for name in ('NO_PROXY', 'no_proxy'):
        monkeypatch.setenv(name, '127.0.0.1')
    monkeypatch.setitem(sys.modules, 'modelscope', None)  # not installed
    huggingface_hub.close_session()  # another test's may go through a proxy


def _at(monkeypatch, url):
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', url)
    monkeypatch.setattr(
        'huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE',
        url + '/{repo_id}/resolve/{revision}/{filename}',
    )


@pytest.fixture
def offline(cache, monkeypatch):
    _at(monkeypatch, NOBODY)


@pytest.fixture
def hub(cache, monkeypatch):
    server = FakeHub()
    threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
    _at(monkeypatch, server.url)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def modelscope(monkeypatch):
    """modelscope(answer): the package, whose snapshot_download is asked on a network; the calls it gets.

    size: of each file, as its HubApi says.
    """
    calls = []

    def install(answer, reachable=True, size=1000):
        class HubApi:
            def get_model_files(self, model_id, revision=None, root=None, recursive=False):
                return [dict(Path=name, Size=size) for name in ('configuration.json', 'pytorch_model.pt')]

        def snapshot_download(
            model_id=None, revision=None, cache_dir=None, *, local_files_only=False, allow_patterns=None, **_
        ):
            calls.append(
                dict(
                    model_id=model_id,
                    revision=revision,
                    local_files_only=local_files_only,
                    allow_patterns=allow_patterns,
                )
            )
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        package = SimpleNamespace(snapshot_download=snapshot_download, HubApi=HubApi)
        monkeypatch.setitem(sys.modules, 'modelscope', package)
        monkeypatch.setenv('MODELSCOPE_ENDPOINT', reachable if isinstance(reachable, str) else NOBODY)
        return calls

    return install


def scores(name, **options):
    return pipeline('vision-efficient-tuning', name, device='cpu', **options)(IMAGE)


# A folder as the remote --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('as_url', [True, False])
def test_a_pushed_folder_is_the_model(folder, tmp_path, as_url, monkeypatch):
    target = tmp_path / 'remote/owner/a name'
    url = push_to_hub(folder, target.as_uri() if as_url else str(target))
    assert url == target.as_uri() and '%20' in url
    assert sorted(path.name for path in target.iterdir()) == [
        'README.md',
        'configuration.json',
        'tuner.safetensors',
    ]
    assert (target / 'tuner.safetensors').read_bytes() == (folder / 'tuner.safetensors').read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ['configuration.json', 'tuner.safetensors']
    expected = scores(folder)
    shutil.rmtree(folder)
    monkeypatch.chdir(tmp_path / 'remote')
    assert scores(url) == scores(target) == expected
    model = from_pretrained(url)
    assert (
        isinstance(model, ImageClassifier)
        and not model.training
        and model.classes == ['5', '6', '7', '8', '9']
    )


def test_pushing_again_replaces_and_a_work_folder_stands_for_its_output(trainer, folder, tmp_path):
    push_to_hub(trainer.folder.path, tmp_path / 'remote')
    (folder / 'README.md').write_text('# My own words\n')
    push_to_hub(folder, tmp_path / 'remote')
    assert (
        (tmp_path / 'remote/README.md').read_text()
        == (folder / 'README.md').read_text()
        == '# My own words\n'
    )
    assert scores(tmp_path / 'remote') == scores(trainer.folder.path)


def test_weights_elsewhere_are_known_by_their_sha256_alone(tmp_path):
    """No path of this machine travels; backbone=PATH says where the weights are there, and other
    weights are refused.
    """
    source = BACKBONES.build(dict(type='timm', name='vit_tiny_patch16_224', pretrained=False, kwargs=VIT))
    state = {
        name: value + 0.01 * torch.randn_like(value) for name, value in source.network.state_dict().items()
    }
    save_file(state, tmp_path / 'weights.safetensors')
    entry = dict(
        type='timm',
        name='vit_tiny_patch16_224',
        pretrained=False,
        kwargs=VIT,
        checkpoint=str(tmp_path / 'weights.safetensors'),
    )
    tuners = [dict(type='LoRA', rank=2)]
    model = build_classifier(BACKBONES.build(entry), tuners, dict(type='Linear'), ['/cat', 'dog']).eval()
    settings = dict(
        model=dict(tuners=tuners, head=dict(type='Linear'), tasks={}),
        train={},
        evaluation={},
        seed=0,
        dataset=dict(train=dict(type='ImageFolder', path='pets', root=str(tmp_path)), test=None),
    )
    save_model(model, tmp_path / 'folder', dict(settings=settings, metrics={}))
    assert (tmp_path / 'folder/configuration.json').read_text().count(str(tmp_path)) == 2
    push_to_hub(tmp_path / 'folder', tmp_path / 'remote')
    card = (tmp_path / 'remote/README.md').read_text()
    # where it was pushed
    assert card.count(str(tmp_path)) == 1 and f"'{tmp_path / 'remote'}')('image.jpg')" in card
    assert str(tmp_path) not in (tmp_path / 'remote/configuration.json').read_text()
    configuration = json.loads((tmp_path / 'remote/configuration.json').read_text())
    assert configuration['classes'] == ['/cat', 'dog'] and configuration['dataset']['train'] == dict(
        type='ImageFolder', path='pets'
    )
    with pytest.raises(DataError, match='these are not the backbone weights that were tuned.*backbone=PATH'):
        from_pretrained(tmp_path / 'remote')
    found = from_pretrained(tmp_path / 'remote', backbone=tmp_path / 'weights.safetensors')
    with torch.no_grad():
        assert torch.equal(found(images(3)), model(images(3)))


def test_what_is_no_model_folder_is_not_pushed(folder, tmp_path, monkeypatch):
    def refused(message, target=tmp_path / 'remote', kind=DataError, **options):
        with pytest.raises(kind, match=message) as caught:
            push_to_hub(folder, target, **options)
        assert '\n' not in str(caught.value) and not (tmp_path / 'remote').exists()

    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused('\'name\' is no place for a model; allowed: the id "owner/name"', 'name', UserError)
    refused('is no place for a model', 'owner/name@main', UserError)
    refused('is the folder to be pushed; give a new folder', folder, UserError)
    monkeypatch.chdir(folder.parent)  # the same folder under another name
    with pytest.raises(UserError, match='is the folder to be pushed; give a new folder'):
        push_to_hub(folder.name, folder)
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/thesis.txt').write_text('mine')
    refused("holds 'thesis.txt'; give a new folder", tmp_path / 'full', UserError)
    assert (tmp_path / 'full/thesis.txt').read_text() == 'mine'
    refused('give a new folder', tmp_path / 'full/thesis.txt', UserError)
    (folder / 'tuner.safetensors').write_bytes(whole['tuner.safetensors'][:-1])
    refused('tuner.safetensors.* cannot be read')
    (folder / 'tuner.safetensors').unlink()
    refused('tuner.safetensors.* cannot be read')
    (folder / 'tuner.safetensors').write_bytes(whole['tuner.safetensors'])
    (folder / 'configuration.json').write_text(
        json.dumps(json.loads(whole['configuration.json']) | dict(custom_imports=['x']))
    )
    refused("asks for 'custom_imports'")
    (folder / 'configuration.json').write_bytes(whole['configuration.json'])
    (tmp_path / 'secret').write_text('a private key')
    (folder / 'README.md').symlink_to(tmp_path / 'secret')
    refused('README.md.* is a link out of its folder, and is refused')


def test_a_remote_folder_s_links_and_code_are_refused(folder, tmp_path):
    url = push_to_hub(folder, tmp_path / 'remote')
    path = tmp_path / 'remote/tuner.safetensors'
    path.rename(tmp_path / 'elsewhere.safetensors')
    path.symlink_to(tmp_path / 'elsewhere.safetensors')
    with pytest.raises(DataError, match='tuner.safetensors.* is a link out of its folder'):
        from_pretrained(url)
    path.unlink()
    (tmp_path / 'elsewhere.safetensors').rename(path)
    assert find_folder(url) == tmp_path / 'remote'
    configuration = json.loads((tmp_path / 'remote/configuration.json').read_text())
    (tmp_path / 'remote/configuration.json').write_text(json.dumps(configuration | dict(_base_=['x.py'])))
    with pytest.raises(DataError, match="asks for '_base_', which could run code"):
        from_pretrained(url)


# The Hugging Face hub ------------------------------------------------------------------------------------------------


def test_push_and_read_an_id(hub, folder, tmp_path, monkeypatch):
    url = push_to_hub(
        folder, 'owner/name', token=TOKEN, private=True, commit_message='Five digits', license='mit'
    )
    assert url == f'{hub.url}/owner/name' and hub.private == {'owner/name': True}
    names = ['README.md', 'configuration.json', 'tuner.safetensors']
    assert hub.commits == [('owner/name', 'main', 'Five digits', names)]
    files = hub.branches['owner/name', 'main']
    assert files['tuner.safetensors'] == (folder / 'tuner.safetensors').read_bytes()
    assert (
        b"pipeline('vision-efficient-tuning', 'owner/name')" in files['README.md']
        and b'license: mit' in files['README.md']
    )
    files |= {'pickle.bin': b'x' * 100, 'sub/configuration.json': b'{}'}  # which are not ours
    expected = scores(folder)
    shutil.rmtree(folder)
    assert scores('owner/name') == expected
    assert sorted(hub.taken) == names
    found = find_folder('owner/name')
    assert tmp_path / 'cache' in found.parents and sorted(hub.taken) == names  # not again
    with torch.no_grad():
        assert torch.equal(from_pretrained('owner/name')(images(2, 8)), load_model(found)(images(2, 8)))
    _at(monkeypatch, NOBODY)  # the network goes away
    assert scores('owner/name') == expected


def test_a_tuned_network_is_pushed_and_loaded_by_its_id(hub, tmp_path):
    def network():
        torch.manual_seed(0)
        return timm.create_model('vit_tiny_patch16_224', **VIT, num_classes=3).eval()

    tuned = vet.tune(network(), vet.LoRA(rank=2))
    with torch.no_grad():
        for parameter in tuned.trainable().values():
            parameter.add_(torch.randn_like(parameter) / 5)
    tuned.save(tmp_path / 'folder', classes=['a', 'b', 'c'])
    push_to_hub(tmp_path / 'folder', 'owner/net', token=TOKEN)
    assert "vet.load('owner/net', network)" in hub.branches['owner/net', 'main']['README.md'].decode()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(vet.load('owner/net', network())(images), tuned(images))
    assert torch.equal(vet.pipeline('owner/net', network=network()).model(images), tuned(images))
    assert vet.pipeline('owner/net', network=network()).classes == ['a', 'b', 'c']
    with pytest.raises(DataError, match='of the class VisionTransformer, which vet cannot build'):
        vet.pipeline('owner/net')


def test_a_local_folder_comes_before_an_id(hub, folder, trainer, tmp_path, monkeypatch):
    push_to_hub(folder, 'owner/name', token=TOKEN)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, 'owner/name')
    assert find_folder('owner/name').resolve() == tmp_path / 'owner/name' and hub.taken == []
    shutil.copytree(trainer.folder.path, 'owner/run')
    assert find_folder('owner/run').resolve() == tmp_path / 'owner/run/output'


def test_a_model_of_a_hub_is_told(hub, folder, tmp_path, monkeypatch, capfd):
    """A path that is mistyped may be the id of a stranger's model."""
    push_to_hub(folder, 'runs/fisrt', token=TOKEN)
    monkeypatch.chdir(tmp_path)
    for words in ("'runs/fisrt' is the model of Hugging Face.", "If you meant a folder in 'runs', correct"):
        find_folder('runs/fisrt')
        assert words in ' '.join(capfd.readouterr().err.split())
        (tmp_path / 'runs').mkdir(exist_ok=True)


@pytest.mark.parametrize(
    'name, words',
    [
        ('owner/name@../../x', 'a revision is a branch, a tag or a commit'),
        ('owner/name@a/../b', 'a revision is a branch, a tag or a commit'),
        (__file__, "test_hub.py' is a file. Give the folder of the model"),
        ('file://host/folder', "names the host 'host'; a file:// URL begins with file:///"),
    ],
)
def test_names_that_lead_elsewhere(name, words, monkeypatch):
    monkeypatch.setattr('vet.hub.names.HUBS', {})
    with pytest.raises(UserError, match=words):
        find_folder(name)


@pytest.mark.slow
def test_revisions(hub, folder):
    push_to_hub(folder, 'owner/name', token=TOKEN)
    first, tensors = scores('owner/name'), folder / 'tuner.safetensors'
    seal(folder, {name: tensor * 2 for name, tensor in load_file(tensors).items()})
    for _ in range(2):  # the second finds nothing changed
        push_to_hub(folder, 'owner/name', token=TOKEN, revision='doubled')
    assert {branch for _, branch in hub.branches} == {'main', 'doubled'}
    assert scores('owner/name') == first != scores('owner/name@doubled') == scores(folder)
    with pytest.raises(DataError, match='Hugging Face: the repository has no such revision'):
        find_folder('owner/name@none')


def test_refusals_of_the_hub(hub, folder):
    hub.branches['owner/other', 'main'] = {'README.md': b'words', 'model.safetensors': b'x'}
    for name, message in (
        ('owner/none', 'Hugging Face: no such repository, or a private one, which `hf auth login` opens'),
        ('owner/other', 'Hugging Face: the repository holds no configuration.json'),
    ):
        with pytest.raises(
            DataError,
            match=f"'{name}' is no folder here, and no hub gave it .{message}; ModelScope: not asked, since"
            r' its package is not installed \(pip install "vision-efficient-tuning\[modelscope\]"\)\)',
        ) as caught:
            pipeline('vision-efficient-tuning', name)
        assert '\n' not in str(caught.value)
    with pytest.raises(UserError, match='could not be pushed.*401.*Log in with `hf auth login`') as caught:
        push_to_hub(folder, 'owner/name', token='another')
    assert hub.commits == [] and 'owner/name' not in hub.private and '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['configuration.json', 'tuner.safetensors'])
def test_a_broken_repository_is_refused_as_a_folder_is(hub, folder, name):
    push_to_hub(folder, 'owner/name', token=TOKEN)
    files = hub.branches['owner/name', 'main']
    files[name] = files[name][:-3]
    with pytest.raises(DataError, match=f'{name}. (is not valid JSON|cannot be read)'):
        from_pretrained('owner/name')


@pytest.mark.parametrize(
    'sizes, message',
    [
        (
            {'tuner.safetensors': 8 * 2**30 + 1},
            r'tuner\.safetensors takes 8,589,934,593 bytes; allowed: 8,589,934,592',
        ),
        (
            {'configuration.json': 2**24 + 1},
            r'configuration\.json takes 16,777,217 bytes; allowed: 16,777,216',
        ),
        (
            {'pytorch_model.pt': 8 * 2**30 + 1},
            r'pytorch_model\.pt takes 8,589,934,593 bytes; allowed: 8,589,934,592',
        ),
        ({'README.md': 2**24 + 1}, r'README\.md takes 16,777,217 bytes.*download the file yourself'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_too_large_a_file_is_not_downloaded(hub, folder, sizes, message):
    push_to_hub(folder, 'owner/name', token=TOKEN)
    hub.branches['owner/name', 'main'] |= {'pytorch_model.pt': b''}
    hub.sizes = sizes
    with pytest.raises(DataError, match=f'Hugging Face: {message}'):
        find_folder('owner/name')
    assert hub.taken == []
    hub.sizes = {name: size - 1 for name, size in sizes.items()} | {'another.bin': 2**50}
    assert (find_folder('owner/name') / 'configuration.json').is_file()


def test_a_repository_of_too_many_files_is_not_downloaded(hub, folder):
    push_to_hub(folder, 'owner/name', token=TOKEN)
    files = hub.branches['owner/name', 'main']
    hub.branches['owner/many', 'main'] = files | {f'{i}.txt': b'' for i in range(9_998)}
    with pytest.raises(DataError, match='Hugging Face: the repository has 10,001 files; allowed: 10,000'):
        find_folder('owner/many')
    assert hub.taken == []
    del hub.branches['owner/many', 'main']['0.txt']
    assert (find_folder('owner/many') / 'configuration.json').is_file()


def test_no_network_is_told_without_a_pause(offline, folder, tmp_path, no_pause):
    with pytest.raises(
        DataError,
        match='Hugging Face: not reachable, and not downloaded before; ModelScope: not asked.*the output/ folder',
    ):
        pipeline('vision-efficient-tuning', 'owner/name')
    with pytest.raises(
        UserError, match="'owner/name' could not be pushed to http://127.0.0.1:9.*check the network"
    ):
        push_to_hub(folder, 'owner/name')


@pytest.mark.slow
def test_a_hub_that_never_answers_is_asked_once(hub, folder, monkeypatch, no_pause):
    push_to_hub(folder, 'owner/name', token=TOKEN)
    expected = scores('owner/name')
    with socket.create_server(('127.0.0.1', 0)) as silent:
        _at(monkeypatch, f'http://127.0.0.1:{silent.getsockname()[1]}')
        assert scores('owner/name') == expected
        with pytest.raises(DataError, match='not reachable, and not downloaded before'):
            find_folder('owner/none')
        silent.setblocking(False)
        asked = [silent.accept() for _ in range(2)]
        with pytest.raises(BlockingIOError):
            silent.accept()
    for connection, _ in asked:
        connection.close()


@pytest.mark.parametrize(
    'name', ['none', './none', '../no/ne', '/no/ne', 'a/b/c', 'https://host/a/b', '~/none', '']
)
def test_what_is_no_id_is_asked_of_no_hub(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('vet.hub.names.HUBS', {})
    if name:
        with pytest.raises(DataError, match='does not exist. Give the output/ folder of a training run'):
            find_folder(name)
    with pytest.raises(DataError, match='does not exist'):
        find_folder(tmp_path / 'owner/name')


def test_known_ids_are_told_to_be_trained(monkeypatch):
    monkeypatch.setattr('vet.hub.names.HUBS', {})
    with pytest.raises(DataError, match=r'build_trainer\(model=…\) trains it'):
        from_pretrained('damo/cv_vitb16_classification_vision-efficient-tuning-lora')


# ModelScope ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_modelscope_comes_last(hub, folder, modelscope):
    calls = modelscope(folder, reachable=hub.url)
    assert scores('owner/name@v2') == scores(folder)
    assert calls == [
        dict(
            model_id='owner/name',
            revision='v2',
            local_files_only=False,
            allow_patterns=['configuration.json', 'tuner.safetensors', 'README.md', 'pytorch_model.pt'],
        )
    ]
    push_to_hub(folder, 'owner/name', token=TOKEN)
    assert scores('owner/name') == scores(folder) and len(calls) == 1  # the Hugging Face hub has it now


def test_modelscope_without_network_has_what_was_downloaded(offline, folder, modelscope):
    calls = modelscope(folder)
    assert scores('owner/name') == scores(folder) and calls[0]['local_files_only']
    modelscope(ValueError('Cannot find the requested files'))
    with pytest.raises(
        DataError,
        match='Hugging Face: not reachable, and not downloaded before; ModelScope: not reachable, and not down',
    ):
        find_folder('owner/name')


def test_modelscope_s_files_have_a_limit_too(hub, folder, modelscope):
    calls = modelscope(folder, reachable=hub.url, size=2**24 + 1)
    with pytest.raises(DataError, match=r'ModelScope: configuration\.json takes 16,777,217 bytes; allowed'):
        find_folder('owner/name')
    assert calls == []


def test_modelscope_says_why(hub, modelscope, tmp_path):
    modelscope(RuntimeError('404: owner/name does not exist.\nRequest id 7'), reachable=hub.url)
    with pytest.raises(
        DataError, match=r'Hugging Face: no such repository.*; ModelScope: 404: owner/name does not exist\)'
    ) as caught:
        find_folder('owner/name')
    assert '\n' not in str(caught.value)
    os.mkdir(tmp_path / 'empty')
    modelscope(tmp_path / 'empty', reachable=hub.url)
    with pytest.raises(DataError, match='ModelScope: the repository holds no configuration.json'):
        find_folder('owner/name')
