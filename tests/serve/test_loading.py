"""Models are loaded when they are asked for, within a memory, whole, and again if their folders change."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serve.folders import save
from tests.serve.running import ask, predict, running, wait_until
from vet import pipeline
from vet.errors import UserError
from vet.hub.file_names import CONFIGURATION, TENSORS
from vet.serve import engine
from vet.serve.sources import Sources


def states(client):
    return {model['name']: model['state'] for model in client.get('/v1/models').json()['models']}


def test_a_model_is_loaded_when_it_is_asked_for(folders, photos):
    with running(f'a={folders["one"]}', f'b={folders["two"]}') as client:
        assert states(client) == dict(a='not loaded', b='not loaded')
        predict(client, 'b', photos[0])
        assert states(client) == dict(a='not loaded', b='loaded')


def test_many_first_requests_load_a_model_once(folders, photos):
    with running(folders['one']) as client:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda photo: predict(client, 'one', photo), photos))
        assert 'vet_loads_total{result="loaded"} 1.0' in client.get('/metrics').text
    assert [answer['labels'] for [answer] in found] == [
        answer['labels'] for answer in pipeline(str(folders['one']), device='cpu')(photos)
    ]


def test_the_model_that_was_not_used_longest_leaves_the_memory(folders, photos):
    with running(folders['one'].parent) as client:
        for name in ('one', 'two'):
            predict(client, name, photos[0])
        room = client.models._used() + 1000  # for a backbone and two models
    with running(folders['one'].parent, memory=room) as client:
        expected = {}
        for name in ('one', 'two', 'one', 'three'):
            expected[name] = predict(client, name, photos[0])
        loaded = {name for name, state in states(client).items() if state == 'loaded'}
        assert 'two' not in loaded and 'three' in loaded and client.models._used() <= room
        for name in ('two', 'three', 'one', 'two'):
            found = predict(client, name, photos[0])
            assert name not in expected or found == expected[name]
            assert client.models._used() <= room
    with running(folders['one'], memory=1000) as client:
        for _ in range(2):
            refused = ask(client, 'one', photos[0])
            assert refused.status_code == 503 and 'larger --memory' in refused.json()['error']
        assert 'vet_loads_total{result="failed"} 1.0' in client.get('/metrics').text
        assert states(client) == dict(one='failed')


def test_a_changed_folder_is_loaded_again(tmp_path, photos):
    save(tmp_path / 'm', seed=1)
    with running(tmp_path / 'm') as client:
        first = predict(client, 'm', *photos)
        save(tmp_path / 'm', seed=2)
        second = predict(client, 'm', *photos)
    assert second == pipeline(str(tmp_path / 'm'), device='cpu')(photos) != first


def test_a_half_copied_folder_never_answers(tmp_path, photos):
    """A copy in place changes one file after the other. The model of before answers until the copy is whole."""
    save(tmp_path / 'm', seed=1)
    new = save(tmp_path / 'new' / 'm', seed=2)
    with running(tmp_path / 'm') as client:
        first = predict(client, 'm', *photos)
        (tmp_path / 'm' / TENSORS).write_bytes((new / TENSORS).read_bytes()[:-500])
        assert predict(client, 'm', *photos) == first
        shutil.copy(new / TENSORS, tmp_path / 'm' / TENSORS)
        assert (
            predict(client, 'm', *photos) == first
        )  # the sha256 of the old configuration refuses the tensors
        shutil.copy(new / CONFIGURATION, tmp_path / 'm' / CONFIGURATION)
        assert predict(client, 'm', *photos) == pipeline(str(new), device='cpu')(photos) != first
        shutil.rmtree(tmp_path / 'm')
        assert len(predict(client, 'm', *photos)) == len(photos)


def test_a_broken_folder_is_refused_until_it_changes(tmp_path, photos):
    folder = save(tmp_path / 'm', seed=1)
    whole = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(whole[:-1])
    with running(folder) as client:
        for _ in range(3):
            refused = ask(client, 'm', photos[0])
            assert refused.status_code == 503 and "'m' cannot be loaded" in refused.json()['error']
        assert states(client) == dict(m='failed')
        assert 'vet_loads_total{result="failed"} 1.0' in client.get('/metrics').text
        (folder / TENSORS).write_bytes(whole)
        predict(client, 'm', photos[0])


def test_a_new_folder_is_found(tmp_path, photos, monkeypatch):
    monkeypatch.setattr('vet.serve.sources.LOOK_AGAIN', 0)
    save(tmp_path / 'first', seed=1)
    with running(tmp_path) as client:
        assert ask(client, 'second', photos[0]).status_code == 404
        save(tmp_path / 'second', seed=2)
        predict(client, 'second', photos[0])


def test_names(folders, tmp_path):
    work = tmp_path / 'run'
    shutil.copytree(folders['one'], work / 'output')
    assert Sources([str(work), f'a={folders["two"]}']).names() == ['run', 'a']
    assert sorted(Sources([str(folders['one'].parent)]).names()) == sorted(folders)
    for given, text in (
        (['nowhere'], "'nowhere' does not exist"),
        ([f'a={folders["one"]}', f'a={folders["two"]}'], "two models have the name 'a'"),
        ([str(shutil.copytree(folders['one'], tmp_path / 'two words'))], "the name 'two words'"),
    ):
        with pytest.raises(UserError, match=text):
            Sources(given)


def test_a_folder_of_models_says_what_it_leaves_out(folders, tmp_path, caplog):
    first, second = tmp_path / 'first', tmp_path / 'second'
    for place in (first / 'm', first / 'two words', second / 'm'):
        shutil.copytree(folders['one'], place)
    (second / 'file.onnx').write_bytes(b'')
    sources = Sources([str(first), str(second), f'{first}/m'])
    assert sorted(sources.names()) == ['file', 'm'] and sources.folder('m') == first / 'm'
    sources._look()
    said = [record.message for record in caplog.records]
    assert len(said) == 2
    assert f"'{first}/two words' is not served: 'two words' cannot stand in an address" in said[0]
    assert f"'{second}/m' is not served: '{first}/m' has the name 'm'" in said[1]


def test_an_idle_server_gives_freed_memory_back_once(folders, photos, monkeypatch):
    calls = []
    monkeypatch.setattr(engine, 'give_back_freed_memory', lambda: calls.append(1))
    monkeypatch.setattr(engine, 'IDLE', 0.2)
    with running(folders['one']) as client:
        for photo in photos[:3]:
            predict(client, 'one', photo)
        wait_until(lambda: calls)
        predict(client, 'one', photos[0])
        assert len(calls) == 1
        wait_until(lambda: len(calls) == 2)
