"""Random changes of what a model folder and a checkpoint hold: each opens, or is refused as a user's
error, and no more.
"""

import json
import os
import random
import shutil
import signal
import sys
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vet.core.tensor_file import read_tensors
from vet.engine.saving.checkpoint import load_checkpoint
from vet.errors import UserError
from vet.hub.model_folder import load_model

pytestmark = pytest.mark.slow
SECONDS = 120  # for one folder, on a busy machine: most take a tenth of a second
FUZZ = settings(
    max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
WORDS = st.sampled_from(
    (
        'type',
        'timm',
        'torchvision',
        'DigitsViT',
        'LoRA',
        'Adapter',
        'VPT',
        'Partial',
        'SideTuning',
        'Linear',
        'MLP',
        'name',
        'kwargs',
        'checkpoint',
        'http://127.0.0.1:9/a',
        '/dev/zero',
        '../..',
        'hf-hub:a/b',
        'resnet18',
        'vit_tiny_patch16_224',
        '((.+)+)+X',
        '*',
        '[',
        'block[-1:]',
        'attn.qkv',
        '\x1b[2J',
        '\ud800',
        '',
        'F32',
        'I64',
        'BOOL',
        'x' * 2000,
        'rank',
        'depth',
        'roles',
        'a' * 64,
        '0' * 64,
        'size',
        'transform',
        'Resize',
    )
)
NUMBERS = st.sampled_from(
    (0, 1, -1, 2, 3, 10**6, 10**9, 2**63, 10**30, 0.5, -0.0, 1e300, float('nan'), float('inf'))
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)
CHANGES = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(('replace', 'remove', 'add')), WORDS, VALUES),
    min_size=1,
    max_size=3,
)
HOOK = dict(watches=False, found=[])


def _watch(event, args):
    if HOOK['watches'] and (
        event
        in ('socket.connect', 'socket.getaddrinfo', 'subprocess.Popen', 'os.system', 'os.exec', 'os.mkdir')
        or (event == 'open' and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR))
    ):
        HOOK['found'].append(f'{event} {args!r:.200}')


sys.addaudithook(_watch)  # for the life of the process


@contextmanager
def guarded():
    """Within: nothing is fetched, started or written, and the time is bounded."""

    def too_late(*_):
        raise AssertionError(f'it took more than {SECONDS} s')

    HOOK.update(watches=True, found=[])
    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(SECONDS)
    try:
        yield
    except UserError as error:
        assert all(character.isprintable() or character == '\n' for character in str(error)), repr(str(error))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        HOOK['watches'] = False
    assert HOOK['found'] == []


def places(value):
    """Every (container, key) in a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def changed(value, changes):
    made = json.loads(json.dumps(value))
    for number, what, word, new in changes:
        every = list(places(made))
        if not every:
            return new
        container, key = every[number % len(every)]
        if what == 'remove':
            del container[key]
        elif what == 'add' and isinstance(container, dict):
            container[word] = new
        else:
            container[key] = new
    return made


@pytest.fixture(scope='module')
def folder(trainer, tmp_path_factory):
    return shutil.copytree(trainer.folder.output, tmp_path_factory.mktemp('fuzz') / 'model')


@pytest.fixture(scope='module')
def timm_configuration(folder):
    good = json.loads((folder / 'configuration.json').read_text())
    backbone = dict(
        type='timm',
        name='vit_tiny_patch16_224',
        tag='',
        pretrained=False,
        checkpoint=None,
        roles={},
        preprocessing={},
        classifier=False,
        sha256='0' * 64,
        kwargs=dict(img_size=8, patch_size=2, embed_dim=64, depth=6, num_heads=4),
    )
    return {**good, 'model': {**good['model'], 'backbone': backbone}}


@pytest.mark.parametrize('base', ['digits', 'timm'])
def test_configurations(folder, timm_configuration, base):
    path = folder / 'configuration.json'
    text = path.read_text()
    good = json.loads(text) if base == 'digits' else timm_configuration

    @FUZZ
    @given(CHANGES)
    def each(changes):
        path.write_text(json.dumps(changed(good, changes)))
        with guarded():
            load_model(folder)

    try:
        each()
    finally:
        path.write_text(text)


def test_headers_of_tensors(folder, tmp_path):
    data = (folder / 'tuner.safetensors').read_bytes()
    size = int.from_bytes(data[:8], 'little')
    header, numbers, path = json.loads(data[8 : 8 + size]), data[8 + size :], tmp_path / 'a.safetensors'

    @FUZZ
    @given(CHANGES, st.integers(0, 2**63) | st.none(), st.integers(0, 100))
    def each(changes, length, cut):
        text = json.dumps(changed(header, changes)).encode()
        path.write_bytes(
            (len(text) if length is None else length).to_bytes(8, 'little') + text + numbers[cut:]
        )
        with guarded():
            read_tensors(path, 'Copy it again.')

    each()


def test_flips_and_cuts_of_every_file(folder, tmp_path):
    """Each wrong bit of the tensors is refused; of the configuration, it is refused or means something."""
    made = shutil.copytree(folder, tmp_path / 'model')
    for name in ('tuner.safetensors', 'configuration.json'):
        path, draw = made / name, random.Random(0)
        data = path.read_bytes()
        for i in range(150):
            place = draw.randrange(8 * len(data))
            spoilt = bytearray(data)
            spoilt[place // 8] ^= 1 << place % 8
            path.write_bytes(spoilt if i % 2 else data[: place // 8])
            opened = []
            with guarded():
                opened.append(load_model(made))
            assert not opened or name == 'configuration.json'
        path.write_bytes(data)


def test_progress_of_a_checkpoint(trainer, tmp_path):
    newest = max((trainer.folder.path / 'checkpoints').iterdir())
    copied = shutil.copytree(newest, tmp_path / newest.name)
    path = copied / 'progress.json'
    good = json.loads(path.read_text())

    @FUZZ
    @given(CHANGES)
    def each(changes):
        path.write_text(json.dumps(changed(good, changes)))
        with guarded():
            load_checkpoint(copied)

    each()
    for text in ('[' * 100_000, '{"a":' * 100_000, '', '\x00', '[]', '7', '"x"'):
        path.write_text(text)
        with guarded():
            load_checkpoint(copied)
