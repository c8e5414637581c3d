"""The server answers as `pipeline` does: bit for bit in the same batch, nearly in batches of several models."""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.serve.running import ask, predict, running
from vet import pipeline

ONE_TASK = ['one', 'prompts', 'several', 'numbers', 'vector', 'masks', 'ranks', 'views']


@pytest.mark.parametrize('name', ONE_TASK)
def test_the_answers_are_those_of_pipeline_bit_for_bit(client, folders, photos, name):
    expected = pipeline(str(folders[name]), device='cpu')(photos, batch_size=len(photos))
    found = predict(client, name, *photos)
    for answer in found:
        if 'masks' in answer:
            pictures = [Image.open(io.BytesIO(base64.b64decode(mask))) for mask in answer['masks']]
            answer['masks'] = [np.asarray(picture).astype(np.uint8) for picture in pictures]
    for answer, other in zip(found, expected, strict=True):
        assert answer.keys() == other.keys()
        for key, value in answer.items():
            if key == 'masks':
                assert all(np.array_equal(*pair) for pair in zip(value, other[key], strict=True))
            else:
                assert value == other[key]


def test_a_json_body_gives_the_same(client, photos):
    images = [base64.b64encode(photo).decode() for photo in photos]
    answer = client.post('/v1/predict', json=dict(model='one', images=images, topk=2)).json()
    assert answer['answers'] == predict(client, 'one', *photos, topk=2)
    assert answer['model'] == 'one' and len(answer['answers'][0]['labels']) == 2


def test_each_image_has_the_options_of_its_request(client, folders, photos):
    """Requests with other options share a batch. topk and threshold stay with their images."""
    expected = pipeline(str(folders['one']), device='cpu')
    with ThreadPoolExecutor(3) as pool:
        whole = pool.submit(predict, client, 'one', photos[0])
        best = pool.submit(predict, client, 'one', photos[0], topk=1)
        unsure = pool.submit(predict, client, 'one', photos[0], threshold=1)
    assert len(whole.result()[0]['labels']) == 5 and len(best.result()[0]['labels']) == 1
    assert unsure.result()[0]['labels'] == ['unsure'] == expected(photos[0], threshold=1)['labels']


@pytest.mark.parametrize(
    'names',
    [
        ('one', 'prompts', 'several', 'numbers', 'vector'),
        pytest.param(('one', 'two', 'three'), marks=pytest.mark.slow),
    ],
)
def test_a_batch_of_several_models(folders, photos, names):
    expected = {name: pipeline(str(folders[name]), device='cpu')(photos) for name in names}
    with running(folders['one'].parent, limits=dict(batch=64, wait=0.5)) as client:
        for name in names:
            predict(client, name, photos[0])
        with ThreadPoolExecutor(len(names)) as pool:
            found = dict(zip(names, pool.map(lambda name: predict(client, name, *photos), names)))
        text = client.get('/metrics').text
    assert f'vet_batch_images_bucket{{le="{16 if len(names) == 3 else 32}.0"}} {len(names)}.0' in text
    for name in names:
        for answer, other in zip(found[name], expected[name], strict=True):
            assert answer.get('labels') == other.get('labels')
            for key in answer.keys() - {'labels'}:
                np.testing.assert_allclose(
                    answer[key],
                    other[key],
                    rtol=0,
                    atol=2e-6 if key == 'vector' else 1e-5 if key in ('age', 'size') else 1e-6,
                )


def test_a_model_of_several_tasks(client, folders, photos):
    classify = pipeline(str(folders['tasks']), device='cpu')
    assert predict(client, 'tasks', *photos, task='right') == classify(photos, task='right')
    refused = ask(client, 'tasks', photos[0])
    assert refused.status_code == 422 and 'left, right' in refused.json()['error']
    refused = ask(client, 'one', photos[0], task='left')
    assert refused.status_code == 422 and 'leave task out' in refused.json()['error']


def test_explain_is_the_picture_of_the_command(client, folders, photos):
    from vet.explain.heat import grad_cam
    from vet.explain.overlay import drawn_over

    classify = pipeline(str(folders['one']), device='cpu')
    view = classify.seen(photos[0])
    expected = drawn_over(view, grad_cam(classify.model, view[None], [2])[0], classify.view())
    answer = client.post('/v1/explain', data=dict(model='one', label='c'), files=dict(image=photos[0]))
    assert answer.headers['content-type'] == 'image/png'
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), np.asarray(expected))
    assert predict(client, 'one', *photos) == classify(photos)
    for fields, text in (
        (dict(model='one', label='q'), "unknown label 'q'"),
        (dict(model='one', method='magic'), 'grad-cam'),
        (dict(model='masks'), 'no single output'),
    ):
        refused = client.post('/v1/explain', data=fields, files=dict(image=photos[0]))
        assert refused.status_code == 422 and text in refused.json()['error']


def test_models_are_described(client):
    listed = client.get('/v1/models').json()['models']
    assert {'name': 'masks', 'state': 'loaded'} in listed or {
        'name': 'masks',
        'state': 'not loaded',
    } in listed
    about = client.get('/v1/models/two').json()
    assert (about['objective'], about['labels'], about['size']) == ('SingleLabel', ['x', 'y', 'z'], [8, 8])
    assert about['metrics'] == dict(accuracy=0.5) and len(about['version']) == 12
    assert set(client.get('/v1/models/tasks').json()['tasks']) == {'left', 'right'}
    json.dumps(about)
