"""vet serve --launcher ray, on a local cluster: answers as pipeline, mixed batches, refusals, more replicas."""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.conftest import ROOT
from tests.serve.folders import photo, save
from tests.serve.running import ask, predict, running, running_engine
from vet import pipeline
from vet.errors import UserError
from vet.serve.limits import Limits
from vet.serve.metrics import Metrics
from vet.serve.refusals import RefusedError
from vet.serve.sources import Sources


def test_ray_that_is_not_installed_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    monkeypatch.delitem(sys.modules, 'vet.serve.ray_engine', raising=False)
    with pytest.raises(
        UserError, match=r'needs Ray Serve, which.*pip install "vision-efficient-tuning\[ray\]"\.$'
    ):
        __import__('vet.serve.ray_engine')


def test_refusals_travel_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(RefusedError(429, 'busy.', {'Retry-After': '3'})))
    assert (error.status, str(error), error.headers) == (429, 'busy.', {'Retry-After': '3'})


@pytest.fixture(scope='module')
def cluster():
    import ray

    ray.init(
        address='local',
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env=dict(env_vars=dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')),
    )
    yield
    ray.shutdown()


@pytest.fixture
def client(cluster, folders):
    from vet.serve.ray_engine import RayEngine

    limits, metrics = Limits(wait=0.05), Metrics()
    engine = RayEngine(Sources([str(folders['one'].parent)]), 2**30, limits, metrics, 'cpu', replicas=2)
    with running_engine(engine, limits, metrics) as client:
        yield client


@pytest.mark.slow
def test_a_cluster_answers_as_pipeline(client, folders, photos):
    from ray import serve

    for name in ('one', 'two', 'several', 'numbers', 'ranks', 'masks'):
        expected = pipeline(model=str(folders[name]))([photo(seed) for seed in range(3)])
        found = predict(client, name, *photos[:3])
        if name == 'masks':
            assert all(len(each['masks']) == len(wanted['masks']) for each, wanted in zip(found, expected))
        else:
            assert [list(each) for each in found] == [list(each) for each in expected]
            assert [each.get('labels') for each in found] == [each.get('labels') for each in expected]
    with ThreadPoolExecutor(16) as clients:  # of three models at once, whose images share batches
        names = ['one', 'two', 'three'] * 16
        answers = list(clients.map(lambda name: predict(client, name, photos[0])[0], names))
    for name in ('one', 'two', 'three'):
        [expected] = pipeline(model=str(folders[name]))([photo(0)])
        for answer in (answer for other, answer in zip(names, answers) if other == name):
            assert answer['labels'] == expected['labels']
            assert answer['scores'] == pytest.approx(expected['scores'], abs=1e-6)
    states = {each['name']: each['state'] for each in client.get('/v1/models').json()['models']}
    assert states['one'] == 'loaded' and states['views'] == 'not loaded'
    assert client.get('/v1/models/one').json()['labels'] == list('abcdefg')
    explained = client.post('/v1/explain', data=dict(model='one'), files=dict(image=photos[0]))
    assert explained.content.startswith(b'\x89PNG')
    assert list(serve.status().applications) == ['vet']


@pytest.mark.slow
def test_a_cluster_refuses_with_the_same_words(client, folders, photos):
    asked = (
        ('none', photos[0], {}, 404),
        ('one', photos[0], dict(threshold=2), 422),
        ('one', photos[0], dict(task='left'), 422),
        ('tasks', photos[0], {}, 422),
        ('one', b'no image', {}, 422),
    )
    with running(folders['one'].parent) as local:
        for model, image, fields, status in asked:
            found, expected = (ask(each, model, image, **fields) for each in (client, local))
            assert (found.status_code, found.json()) == (status, expected.json())


@pytest.mark.slow
def test_a_changed_folder_and_a_new_folder_are_answered(cluster, tmp_path, photos):
    from vet.serve.ray_engine import RayEngine

    save(tmp_path / 'm', seed=1)
    limits = Limits()
    engine = RayEngine(Sources([str(tmp_path)]), 2**30, limits, Metrics(), 'cpu', replicas=1)
    with running_engine(engine, limits) as client:
        before = ask(client, 'm', photos[0]).json()
        (tmp_path / 'm').rename(tmp_path / '.old')
        save(tmp_path / 'm', seed=2)
        after = ask(client, 'm', photos[0]).json()
        assert before['version'] != after['version']
        [expected] = pipeline(model=str(tmp_path / 'm'))([photo(0)])
        assert after['answers'][0]['labels'] == expected['labels']


@pytest.mark.slow
def test_what_cannot_start_is_told(cluster, folders):
    from vet.serve.ray_engine import RayEngine

    with pytest.raises(UserError, match='no replica could start on the Ray cluster'):
        RayEngine(
            Sources([str(folders['one'])]),
            2**30,
            Limits(),
            Metrics(),
            'cpu',
            prepare=partial(_fails, 'the plugin is broken'),
        )


def _fails(text):
    raise UserError(text)
