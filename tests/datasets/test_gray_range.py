"""Gray images of more than 8 bits: a range of levels, the same in training and inference, kept in the
model folder.
"""

import io
import json
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from vet import build_trainer, pipeline
from vet.core.backbone import Preprocessing
from vet.datasets import image as module
from vet.datasets.base import gray_range_of, set_gray_range
from vet.datasets.hold_out import hold_out
from vet.datasets.image import open_image
from vet.datasets.image_folder import ImageFolder
from vet.datasets.multitask import MultiTask
from vet.engine.feed.image_cache import cached_images
from vet.errors import DataError, DataWarning, UserError

RAMP = np.array([[0, 1024, 2048, 4095]])
WINDOW = (0, 4095)
LEVELS = [0, 64, 128, 255]


def gray(image):
    return np.asarray(image)[..., 0].ravel().tolist()


def encoded(values, format='PNG'):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(module, '_said', [])


@pytest.mark.parametrize(
    'source',
    [
        encoded(RAMP.astype(np.uint16)),
        encoded(RAMP.astype(np.uint16), 'TIFF'),
        encoded(RAMP.astype(np.int32), 'TIFF'),
        encoded(RAMP.astype(np.float32), 'TIFF'),
        RAMP.astype(np.uint16),
        RAMP.astype(np.int16),
        RAMP,
        RAMP.astype(np.float32),
        RAMP.astype(np.float64)[..., None],
        Image.fromarray(RAMP.astype(np.uint16)),
        Image.fromarray(RAMP.astype(np.int32)),
        dict(image=RAMP.astype(np.uint16)),
    ],
    ids=lambda source: f'{type(source).__name__}-{getattr(source, "dtype", getattr(source, "mode", ""))}',
)
def test_the_range_becomes_all_levels(source):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert gray(open_image(source, WINDOW)) == LEVELS


def test_levels_outside_are_cut_off():
    hounsfield = np.array([[-1024, -160, 41, 240, 3000]], np.int16)
    assert gray(open_image(hounsfield, (-160, 240))) == [0, 0, 128, 255, 255]
    with pytest.raises(DataError, match='not finite'):
        open_image(np.array([[0.0, np.nan]]), WINDOW)


@pytest.mark.parametrize(
    'array',
    [
        np.array([[7, 200]], np.uint8),
        np.array([[True, False]]),
        np.full((1, 2, 3), 9, np.uint8),
        np.full((1, 2, 3), 0.5),
    ],
)
def test_images_of_8_bits_and_colours_are_as_they_are(array):
    assert np.array_equal(open_image(array, WINDOW), open_image(array))


@pytest.mark.parametrize(
    'source',
    [encoded(RAMP.astype(np.uint16)), RAMP.astype(np.uint16), encoded(RAMP.astype(np.int32), 'TIFF')],
    ids=['png', 'array', 'int32'],
)
def test_few_levels_are_said_once(source):
    with pytest.warns(
        DataWarning,
        match=r'are 0 … 4,095, a small part of the 16 bits.*16 levels are left.*gray_range=.*\(0, 4095\) for 12 bits',
    ):
        assert gray(open_image(source)) == [0, 4, 8, 16]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        open_image(source)


def test_an_image_of_all_16_bits_is_no_reason_to_warn():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        open_image(np.array([[0, 65535]], np.uint16))
        open_image(np.array([[500, 9000]], np.uint16))
        open_image(np.array([[300, 300]], np.uint16))  # one level: nothing is lost


@pytest.mark.parametrize(
    'given', [5, (1,), (1, 2, 3), (4095, 0), (0, 0), ('a', 'b'), (0, float('inf')), (float('nan'), 1)]
)
def test_ranges_that_are_refused(given):
    with pytest.raises(UserError, match='preprocessing.gray_range is .*(2 values: a number|in rising order)'):
        Preprocessing().with_changes(dict(gray_range=given))
    assert Preprocessing().with_changes(dict(gray_range=[0, 4095])).gray_range == WINDOW


def test_parts_and_tasks_have_their_range(tmp_path, scans):
    data = ImageFolder(scans, 'train')
    first, second = hold_out(data, 0.5)
    tasks = MultiTask(dict(a=first, b=ImageFolder(scans, 'test')))
    set_gray_range(tasks, dict(a=WINDOW, b=None))
    assert gray_range_of(tasks, 'a') == gray_range_of(data) == WINDOW and gray_range_of(tasks, 'b') is None
    set_gray_range(tasks, dict(a=None, b=None))
    assert gray_range_of(data) is None


def test_a_cache_of_images_is_of_one_range(tmp_path, scans, monkeypatch):
    monkeypatch.setenv('VET_CACHE_DIR', str(tmp_path / 'cache'))
    data = ImageFolder(scans, 'train')
    with pytest.warns(DataWarning, match='small part'):
        plain = np.asarray(cached_images(data, [])[0][0])
    set_gray_range(data, {None: WINDOW})
    assert np.asarray(cached_images(data, [])[0][0]).max() > 8 * plain.max()


@pytest.fixture
def scans(tmp_path):
    """12-bit scans in 16-bit PNGs: class a is dark, class b bright, and 8 bits hold 16 levels of both."""
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        for number, name in enumerate('ab'):
            folder = tmp_path / 'scans' / split / name
            folder.mkdir(parents=True)
            for index in range(4):
                values = rng.integers(1000 + 2000 * number, 2000 + 2000 * number, (8, 8)).astype(np.uint16)
                Image.fromarray(values).save(folder / f'{index}.png')
    return tmp_path / 'scans'


@pytest.mark.slow
@pytest.mark.parametrize('cache', [False, True])
def test_training_and_inference_read_by_the_same_range(tmp_path, scans, monkeypatch, cache):
    monkeypatch.setenv('VET_CACHE_DIR', str(tmp_path / 'cache'))
    seen = []
    windowed = module._windowed
    monkeypatch.setattr(
        module, '_windowed', lambda values, range: seen.append(range) or windowed(values, range)
    )
    backbone = dict(
        type='torchvision',
        name='shufflenet_v2_x0_5',
        pretrained=False,
        preprocessing=dict(size=32, gray_range=[0, 4095]),
    )
    here = dict(workers_per_gpu=0)
    config = dict(
        model=dict(backbone=backbone),
        train=dict(max_epochs=1, dataloader=here, cache_images=cache),
        evaluation=dict(dataloader=here),
    )
    trainer = build_trainer(
        model=config,
        work_dir=tmp_path / 'work',
        device='cpu',
        train_dataset=ImageFolder(scans, 'train'),
        eval_dataset=ImageFolder(scans, 'test'),
    )
    trainer.train()
    assert len(seen) >= 16 and set(seen) == {WINDOW}
    assert json.loads((trainer.folder.output / 'configuration.json').read_text())['preprocessing'][
        'gray_range'
    ] == [0, 4095]
    classify, path = pipeline(model=trainer.folder.output, device='cpu'), str(scans / 'test/b/0.png')
    by_hand = np.rint(np.asarray(Image.open(path)) / 4095 * 255).astype(np.uint8)
    assert classify(path) == classify(by_hand) == trainer.predict([path], topk=5)[0]


def deep_png(pixels):
    """A PNG of 16 bits. pixels: uint16 (H, W, 2: gray and alpha) or (H, W, 3). Pillow cannot write it."""

    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    height, width, channels = pixels.shape
    header = struct.pack('>IIBBBBB', width, height, 16, {2: 4, 3: 2}[channels], 0, 0, 0)
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
    parts = ((b'IHDR', header), (b'IDAT', zlib.compress(rows)), (b'IEND', b''))
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in parts)


DEEP_COLOURS = np.stack([RAMP.astype(np.uint16)] * 3, -1)


@pytest.mark.parametrize('source', [deep_png(DEEP_COLOURS), DEEP_COLOURS], ids=['png', 'array'])
def test_colours_of_few_levels_are_said(source):
    with pytest.warns(
        DataWarning, match='the colours of an image .*1[67] levels are left.* scale their colours'
    ):
        open_image(source)


def test_colours_of_all_16_bits_are_no_reason_to_warn(recwarn):
    open_image(deep_png(DEEP_COLOURS * 16))
    assert not recwarn.list


def test_gray_levels_beside_a_transparency_are_refused_rather_than_squeezed():
    source = deep_png(np.stack([RAMP.astype(np.uint16), np.full(RAMP.shape, 65535, np.uint16)], -1))
    with pytest.raises(DataError, match='16 bits beside a transparency.*save it without the transparency'):
        open_image(source, WINDOW)
    with pytest.warns(DataWarning, match='small part of the 16 bits'):
        open_image(source)
