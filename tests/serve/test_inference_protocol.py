"""The Open Inference Protocol, spoken by Triton's own client."""

import base64
import json

import numpy as np
import pytest

from tests.serve.running import predict, running
from vet import pipeline

triton = pytest.importorskip('tritonclient.http')


@pytest.fixture(scope='module')
def server(client):
    return triton.InferenceServerClient(f'{client.base_url.host}:{client.base_url.port}')


def asked(photos, is_binary=True):
    image = triton.InferInput('image', [len(photos)], 'BYTES')
    texts = photos if is_binary else [base64.b64encode(photo) for photo in photos]
    image.set_data_from_numpy(np.array(texts, dtype=object), binary_data=is_binary)
    return [image]


def test_health_and_metadata(server):
    assert server.is_server_live() and server.is_server_ready() and server.is_model_ready('one')
    assert not server.is_model_ready('nobody')
    assert server.get_server_metadata()['name'] == 'vet'
    about = server.get_model_metadata('one')
    assert about['inputs'] == [dict(name='image', datatype='BYTES', shape=[-1])]
    assert {each['name']: each['datatype'] for each in about['outputs']} == dict(
        answer='BYTES', labels='BYTES', scores='FP32'
    )
    assert {each['name'] for each in server.get_model_metadata('numbers')['outputs']} == {
        'answer',
        'age',
        'size',
    }


def test_a_server_that_ends_is_not_ready(folders):
    with running(folders['one'], ready=lambda: False) as client:
        server = triton.InferenceServerClient(f'{client.base_url.host}:{client.base_url.port}')
        assert server.is_server_live() and not server.is_server_ready()
        assert client.get('/readyz').status_code == 503


def test_a_model_of_several_tasks(server, folders, photos):
    about = server.get_model_metadata('tasks')
    assert [each['name'] for each in about['outputs']] == ['answer'] and len(about['versions'][0]) == 12
    found = server.infer('tasks', asked(photos), parameters=dict(task='right'))
    expected = pipeline(str(folders['tasks']), device='cpu')(photos, task='right')
    assert [json.loads(text) for text in found.as_numpy('answer')] == expected


def test_the_data_of_an_input_may_be_lists_in_lists(client, photos):
    texts = [base64.b64encode(photo).decode() for photo in photos[:4]]

    def outputs(shape, data):
        image = dict(name='image', datatype='BYTES', shape=shape, data=data)
        return client.post('/v2/models/one/infer', json=dict(inputs=[image])).json()['outputs']

    assert outputs([4], texts) == outputs([2, 2], [texts[:2], texts[2:]])


@pytest.mark.parametrize('of_client', [True, False])
@pytest.mark.parametrize('of_server', [None, True, False])
def test_scores_and_labels(server, client, folders, photos, of_client, of_server):
    expected = pipeline(str(folders['one']), device='cpu')(photos, topk=3)
    wanted = None
    if of_server is not None:
        wanted = [triton.InferRequestedOutput(name, binary_data=of_server) for name in ('scores', 'labels')]
    found = server.infer(
        'one', asked(photos, of_client), outputs=wanted, request_id='7', parameters=dict(topk=3)
    )
    scores, labels = found.as_numpy('scores'), found.as_numpy('labels')
    assert scores.dtype == np.float32 and scores.tolist() == [answer['scores'] for answer in expected]
    decoded = [[one.decode() if isinstance(one, bytes) else one for one in row] for row in labels.tolist()]
    assert decoded == [answer['labels'] for answer in expected]
    assert found.get_response()['id'] == '7' and found.get_response()['model_name'] == 'one'
    if wanted is None:
        assert [json.loads(text) for text in found.as_numpy('answer')] == predict(
            client, 'one', *photos, topk=3
        )


def test_other_objectives(server, folders, photos):
    numbers = server.infer('numbers', asked(photos))
    expected = pipeline(str(folders['numbers']), device='cpu')(photos)
    assert numbers.as_numpy('age').tolist() == [answer['age'] for answer in expected]
    vectors = server.infer('vector', asked(photos)).as_numpy('vector')
    assert vectors.tolist() == [
        answer['vector'] for answer in pipeline(str(folders['vector']), device='cpu')(photos)
    ]


def test_refusals_reach_the_client(server, photos):
    for model, inputs, text in (
        ('nobody', asked(photos), 'no model'),
        ('one', asked([b'x']), 'image 0 of the request cannot be read'),
    ):
        with pytest.raises(
            triton.InferenceServerException if hasattr(triton, 'InferenceServerException') else Exception,
            match=text,
        ):
            server.infer(model, inputs)


@pytest.mark.parametrize(
    'length, body, status',
    [
        ('9999', b'{}', 400),
        ('x', b'{}', 400),
        ('2', b'{}rest', 422),
        (None, b'{"inputs": []}', 422),
        (None, b'{"inputs": [{"name": "other", "datatype": "BYTES", "shape": [1], "data": ["AA=="]}]}', 422),
        (None, b'{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1], "data": ["AA=="]}]}', 422),
        (None, b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [3], "data": [1, 2, 3]}]}', 422),
        (None, b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [1]}]}', 422),
        (None, b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": ["AA=="]}]}', 422),
        (None, b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [0], "data": []}]}', 413),
    ],
)
def test_wrong_bodies(client, length, body, status):
    headers = {'Inference-Header-Content-Length': length} if length else {}
    answer = client.post('/v2/models/one/infer', content=body, headers=headers)
    assert answer.status_code == status and answer.json()['error']


@pytest.mark.parametrize('data', [b'\x01', b'\x09\0\0\0abc', b'\xff\xff\xff\xff'])
def test_broken_binary_data(client, data):
    head = dict(name='image', datatype='BYTES', shape=[1], parameters=dict(binary_data_size=len(data)))
    text = json.dumps(dict(inputs=[head])).encode()
    answer = client.post(
        '/v2/models/one/infer',
        content=text + data,
        headers={'Inference-Header-Content-Length': str(len(text))},
    )
    assert answer.status_code == 400, answer.text
