"""The pipeline: every kind of input gives the scores of the plain RGB image; outputs are plain; errors
say what to do.
"""

import io
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from vet import pipeline
from vet.errors import DataError, UnknownNameError, UserError

GRAY = np.arange(6 * 9, dtype=np.uint8).reshape(6, 9) * 4  # not square: a turned image shows


@pytest.fixture(scope='module')
def classify(trainer):
    return pipeline('vision-efficient-tuning', trainer.folder.output, device='cpu')


@pytest.fixture(scope='module')
def digits(trainer):
    return [image for image, _ in (trainer.data['test'][i] for i in range(7))]


@pytest.fixture(scope='module')
def plain():
    return Image.fromarray(GRAY).convert('RGB')


def encoded(image, kind='PNG', **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_result_is_plain_and_sorted(classify, plain):
    result = classify(plain)
    assert set(result) == {'scores', 'labels'} and json.loads(json.dumps(result)) == result
    assert all(type(score) is float for score in result['scores']) and all(
        type(label) is str for label in result['labels']
    )
    assert result['scores'] == sorted(result['scores'], reverse=True) and sum(
        result['scores']
    ) == pytest.approx(1)
    assert sorted(result['labels']) == classify.classes == ['5', '6', '7', '8', '9']


def test_scores_are_the_trainers(classify, trainer, digits):
    assert classify(digits, topk=5, batch_size=len(digits)) == trainer.predict(digits, topk=5)


def test_topk(classify, plain):
    full = classify(plain)
    assert classify(plain, topk=100) == full
    assert classify(plain, topk=2) == {key: values[:2] for key, values in full.items()}


def test_every_kind_of_source(classify, plain, tmp_path):
    expected, data, array = classify(plain), encoded(plain), np.asarray(plain)
    (tmp_path / 'a.png').write_bytes(data)
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
    try:
        url = f'http://127.0.0.1:{server.server_port}'
        with open(tmp_path / 'a.png', 'rb') as file:
            for source in (
                str(tmp_path / 'a.png'),
                tmp_path / 'a.png',
                f'{url}/a.png',
                data,
                bytearray(data),
                memoryview(data),
                array,
                array[..., :1],
                file,
                io.BytesIO(data),
                dict(image=plain),
                dict(image=array, label=3),
            ):
                assert classify(source) == expected, source
        with pytest.raises(DataError, match='cannot read http.*404'):
            classify(f'{url}/b.png')
    finally:
        server.shutdown()
        server.server_close()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    return encoded(Image.fromarray(GRAY).convert('RGB').transpose(Image.Transpose.ROTATE_90), exif=exif)


@pytest.mark.parametrize(
    'source',
    [
        Image.fromarray(GRAY),
        Image.fromarray(GRAY).convert('P'),
        Image.fromarray(GRAY).convert('RGBA'),
        Image.fromarray(GRAY).convert('LA'),
        Image.fromarray(GRAY.astype(np.uint16) * 257),
        GRAY,
        GRAY[..., None],
        GRAY.astype(np.uint16) * 257,
        GRAY / 255,
        np.dstack([GRAY] * 3 + [np.full_like(GRAY, 255)]),
        encoded(Image.fromarray(GRAY.astype(np.uint16) * 257)),
        encoded(Image.fromarray(GRAY).convert('P')),
        rotated(),
        encoded(Image.fromarray(GRAY).convert('RGB'), 'TIFF'),
        encoded(Image.merge('CMYK', [Image.fromarray(255 - GRAY)] * 3 + [Image.new('L', (9, 6), 0)]), 'TIFF'),
    ],
    ids=lambda source: f'{type(source).__name__}-{getattr(source, "mode", getattr(source, "shape", ""))}',
)
def test_every_kind_of_pixels(classify, plain, source):
    assert classify(source) == classify(plain)


def test_lists_and_batches(classify, digits):
    one_by_one = [classify(image) for image in digits]
    for batch_size in (1, 3, 100):
        results = classify(digits, batch_size=batch_size)
        assert [r['labels'] for r in results] == [r['labels'] for r in one_by_one]
        assert np.allclose([r['scores'] for r in results], [r['scores'] for r in one_by_one], atol=1e-6)
    assert classify([]) == [] and len(classify(tuple(digits[:2]))) == 2
    assert list(classify(iter([]))) == []


def test_an_iterator_is_read_a_batch_ahead_and_no_more(classify, digits):
    taken = []

    def source():
        for i in range(10**9):
            taken.append(i)
            yield dict(image=digits[i % 3])

    results = classify(source(), batch_size=4)
    assert taken == []
    first = [next(results) for _ in range(4)]
    assert taken == [0, 1, 2, 3]
    assert next(results)['labels'] == first[1]['labels'] and len(taken) == 8


def test_errors_of_images(classify, plain, tmp_path):
    (tmp_path / 'cut.png').write_bytes(encoded(plain)[:60])
    (tmp_path / 'text.jpg').write_text('no image')
    for source, message in (
        (tmp_path / 'none.png', 'none.png'),
        (tmp_path / 'cut.png', 'cut.png'),
        (tmp_path / 'text.jpg', 'text.jpg'),
        (b'', 'bytes'),
        (tmp_path, str(tmp_path)),
        (np.zeros((2, 3, 4, 5)), r'\(2, 3, 4, 5\)'),
        (np.full((2, 2), 3.0), r'\[0, 1\]'),
        (dict(img=1), 'image'),
        ([3], 'int'),
        (3, 'int'),
        (None, 'NoneType'),
    ):
        with pytest.raises(UserError, match=message):
            classify(source)


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(topk=0), 'topk must be at least 1'),
        (dict(topk=-1), 'topk must be at least 1'),
        (dict(topk='5'), "topk is '5'; topk must be at least 1, as a whole number"),
        (dict(topk=1.5), 'topk must be at least 1, as a whole number'),
        (dict(topk=True), 'topk must be at least 1, as a whole number'),
        (dict(batch_size=0), 'batch_size must be at least 1'),
        (dict(batch_size='all'), 'batch_size must be at least 1'),
        (dict(workers=-1), 'workers must be at least 0'),
        (dict(workers=None), 'workers must be at least 0'),
        (dict(threshold=2), 'threshold must be a number from 0 to 1'),
        (dict(threshold='0.5'), 'threshold must be a number from 0 to 1'),
        (dict(on_error='skip'), "unknown on_error 'skip'"),
    ],
)
def test_errors_of_options(classify, plain, options, words):
    with pytest.raises(UserError, match=words):
        classify(plain, **options)


@pytest.mark.parametrize('topk', [0, '5', 1.5])
def test_the_trainer_checks_topk_too(trainer, digits, topk):
    with pytest.raises(UserError, match='topk must be at least 1, as a whole number'):
        trainer.predict(digits, topk=topk)


@pytest.mark.parametrize('workers', [0, 3])
@pytest.mark.parametrize('batch_size', [1, 2, 100])
def test_a_bad_image_costs_no_other_answer(classify, digits, batch_size, workers):
    given = [digits[0], 'nothing.png', digits[1], 'none.png', digits[2]]
    options = dict(batch_size=batch_size, workers=workers)
    answers = classify(given, on_error='return', **options)
    good = [answers[0], answers[2], answers[4]]
    assert [answer['labels'] for answer in good] == [answer['labels'] for answer in classify(digits[:3])]
    assert 'image 1' in str(answers[1]) and "'none.png'" in str(answers[3])
    with pytest.raises(UserError, match='image 1 of those given'):
        classify(given, **options)
    found, results = [], classify(iter(given), **options)
    for _ in given:
        try:
            found.append(next(results))
        except DataError as error:
            found.append(str(error))
    assert found == [str(each) if isinstance(each, UserError) else each for each in answers]
    assert next(results, 'the end') == 'the end'
    assert isinstance(classify('none.png', on_error='return'), DataError)


@pytest.mark.parametrize('workers', [0, 2])
def test_an_error_of_the_source_comes_after_the_answers_before_it(classify, digits, workers):
    def source():
        yield from digits[:3]
        raise RuntimeError('the camera is gone')

    results = classify(source(), on_error='return', workers=workers)
    assert [next(results) for _ in range(3)] == classify(digits[:3])
    with pytest.raises(RuntimeError, match='the camera is gone'):
        next(results)


def test_workers_change_no_answer_and_read_one_more_batch(classify, digits):
    assert classify(digits, workers=4) == classify(digits)
    taken = []
    results = classify(iter([]), workers=2)
    assert list(results) == []
    source = (taken.append(i) or digits[i % 3] for i in range(10**9))
    results = classify(source, batch_size=4, workers=2)
    next(results)
    assert len(taken) == 8


def test_an_unsure_answer(classify, plain):
    best = classify(plain)
    above = best['scores'][0] + 1e-6
    assert classify(plain, threshold=above) == dict(labels=['unsure'], scores=best['scores'][:1])
    assert classify(plain, threshold=best['scores'][0]) == best


def test_errors_of_the_model(trainer, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown task 'image-classification'"):
        pipeline('image-classification', trainer.folder.output)
    with pytest.raises(UserError, match='pipeline needs model='):
        pipeline('vision-efficient-tuning')
    with pytest.raises(DataError, match='does not exist. Give the output/ folder'):
        pipeline('vision-efficient-tuning', tmp_path / 'none')
    with pytest.raises(DataError, match=r'build_trainer\(model=…\) trains it'):
        pipeline('vision-efficient-tuning', 'damo/cv_vitb16_classification_vision-efficient-tuning-lora')
    with pytest.raises(DataError, match='is no model folder'):
        pipeline('vision-efficient-tuning', tmp_path)
    with pytest.raises(UserError, match="the device 'gpu7' cannot be used"):
        pipeline('vision-efficient-tuning', trainer.folder.output, device='gpu7')


def test_work_folder_stands_for_its_output(trainer, classify, plain):
    assert pipeline(model=trainer.folder.path, device='cpu')(plain) == classify(plain)


def test_threads_share_a_pipeline(classify, digits):
    expected, found = [classify(image) for image in digits], {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: classify(digits[i])}))
        for i in range(len(digits))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(digits))] == expected


def test_no_gradients_are_kept(classify, plain):
    classify(plain)
    assert all(p.grad is None for p in classify.model.parameters()) and not classify.model.training
    assert torch.is_grad_enabled()


def test_an_iterator_that_waits_leaves_the_callers_mode(trainer):
    """Between two images the caller may train: inference mode is on in the pipeline alone."""
    data = trainer.data['test']
    answers = pipeline(model=trainer.folder.output)(iter([data[i][0] for i in range(3)]), batch_size=1)
    for _ in range(3):
        assert next(answers)['labels']
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
        torch.ones(1, requires_grad=True).exp().backward()


SOURCES = dict(
    thin=np.zeros((1, 20_000, 3), np.uint8),
    tall=np.zeros((65_000, 2), np.uint8),
    line=np.zeros((1, 10**6), np.uint8),
    dot=np.zeros((1, 1), np.uint8),
    none=np.zeros((0, 5, 3), np.uint8),
    many=np.broadcast_to(np.uint8(0), (10**6, 10**6, 3)),
    cube=np.zeros((5, 5, 5), np.uint8),
    scalar=np.zeros((), np.uint8),
    nan=np.full((4, 4), np.nan),
    complex=np.zeros((4, 4), complex),
    text=np.zeros((4, 4), 'U1'),
    zeros=bytes(100),
    html=b'<html>',
    nested=dict(image=dict(image=GRAY)),
    empty='',
    blank=' ',
    nul='\0',
    long='a' * 5000,
    ftp='ftp://x/y',
    file='file:///etc/hostname',
    folder='/',
    url='http://127.0.0.1:1/x',
    broken='http://[',
)


@pytest.mark.parametrize('name', SOURCES)
def test_an_odd_source_is_classified_or_refused_by_name(classify, plain, name):
    """Nothing else comes of it, also in the middle of a list, which says which image it is."""
    try:
        result = classify(SOURCES[name])
    except UserError:
        with pytest.raises(UserError, match='image 1 of those given'):
            classify([plain, SOURCES[name]])
    else:
        assert name in ('thin', 'tall', 'line', 'dot', 'nested') and sum(result['scores']) == pytest.approx(1)
