"""vet serve takes an ONNX file: onnxruntime answers as the model folder does."""

import pytest

from tests.serve.running import ask, predict, running
from vet import pipeline
from vet.hub.export import export


@pytest.mark.slow
def test_a_file_answers_as_its_folder(folders, photos, tmp_path):
    pytest.importorskip('onnxruntime')
    path = tmp_path / 'small.onnx'
    export(folders['one'], path, 'onnx')
    expected = pipeline(str(folders['one']), device='cpu')(photos)
    with running(path, f'folder={folders["one"]}') as client:
        found = predict(client, 'small', *photos)
        assert client.get('/v1/models/small').json()['labels'] == list('abcdefg')
        for answer, other in zip(found, expected, strict=True):
            assert answer['labels'] == other['labels']
            assert answer['scores'] == pytest.approx(other['scores'], abs=1e-5)
        refused = client.post('/v1/explain', data=dict(model='small'), files=dict(image=photos[0]))
        assert refused.status_code == 422 and 'Serve the model folder' in refused.json()['error']
        path.write_bytes(b'broken')
        assert predict(client, 'small', *photos) == found
    with running(path) as client:
        refused = ask(client, 'small', photos[0])
        assert refused.status_code == 503 and 'no ONNX file of vet' in refused.json()['error']


@pytest.mark.slow
def test_a_file_keeps_the_views_of_its_folder(folders, photos, tmp_path):
    """Test-time augmentation is no part of the graph; the server shows the graph each view."""
    pytest.importorskip('onnxruntime')
    export(folders['views'], tmp_path / 'views.onnx', 'onnx')
    expected = pipeline(str(folders['views']), device='cpu')(photos)
    with running(tmp_path) as client:
        for answer, other in zip(predict(client, 'views', *photos), expected, strict=True):
            assert answer['labels'] == other['labels']
            assert answer['scores'] == pytest.approx(other['scores'], abs=1e-5)
