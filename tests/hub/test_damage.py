"""A model folder with one wrong bit, number or type is refused, and nothing of it reaches the network."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.hub.sealed import seal
from vet.core.model import load_into
from vet.core.tensor_file import read_tensors
from vet.errors import DataError
from vet.hub.combine import combine
from vet.hub.model_folder import load_model


@pytest.fixture
def folder(trainer, tmp_path):
    return shutil.copytree(trainer.folder.output, tmp_path / 'copy')


def test_each_flipped_bit_and_each_cut_is_refused(folder):
    path = folder / 'tuner.safetensors'
    sha256 = json.loads((folder / 'configuration.json').read_text())['sha256']['tuner.safetensors']
    data, draw, taken = path.read_bytes(), random.Random(0), 0
    for i in range(300):
        place = draw.randrange(8 * len(data))
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed if i < 200 else data[: place // 8])
        try:
            read_tensors(path, 'Copy it again.', sha256)
            taken += 1
        except DataError as error:
            assert str(error).endswith('Copy it again.')
    assert taken == 0
    path.write_bytes(data)
    assert read_tensors(path, '', sha256).keys() == load_file(path).keys()


def test_a_folder_with_a_flipped_bit_does_not_open(folder):
    path = folder / 'tuner.safetensors'
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    with pytest.raises(
        DataError,
        match='tuner.safetensors. cannot be read: it is damaged or changed, its sha256 is .* Copy the model folder again',
    ):
        load_model(folder)


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda t: t.int(), r'head.fc.bias. \(given \(5,\) of torch.int32, needed \(5,\) of torch.float32\)'),
        (lambda t: t > 0, 'of torch.bool'),
        (lambda t: t.to(torch.complex64), 'of torch.complex64'),
        (lambda t: t.fill_(float('nan')), 'not finite in 1 tensors, such as .head.fc.bias'),
        (lambda t: t.fill_(float('-inf')), 'not finite in 1 tensors'),
        (lambda t: t.to(torch.float8_e5m2), 'head.fc.bias'),
    ],
    ids=['int', 'bool', 'complex', 'nan', 'inf', 'float8'],
)
def test_numbers_of_another_kind_are_refused_even_with_their_checksum(folder, change, message):
    tensors = load_file(folder / 'tuner.safetensors')
    seal(folder, tensors | {'head.fc.bias': change(tensors['head.fc.bias'].clone())})
    with pytest.raises(DataError, match=message):
        load_model(folder)


def test_nothing_is_copied_where_one_number_is_not_finite():
    own, given = (
        dict(a=torch.zeros(2), b=torch.zeros(2)),
        dict(a=torch.ones(2), b=torch.tensor([1.0, torch.nan])),
    )
    with pytest.raises(DataError, match='the file holds numbers that are not finite'):
        load_into(own, given, 'the file')
    assert torch.equal(own['a'], torch.zeros(2))


def test_floats_of_another_width_are_read(folder):
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / 'tuner.safetensors').items()}
    seal(folder, {name: tensor.bfloat16() for name, tensor in tensors.items()})
    state = load_model(folder).trained_state()
    assert all(torch.equal(state[name], tensor.bfloat16().float()) for name, tensor in tensors.items())


def test_a_folder_without_a_checksum_opens_with_a_warning_and_is_written_again_with_one(
    folder, tmp_path, recwarn
):
    path = folder / 'configuration.json'
    configuration = json.loads(path.read_text())
    without = {key: value for key, value in configuration.items() if key not in ('sha256', 'format')}
    path.write_text(json.dumps(without))
    with pytest.warns(UserWarning, match='was saved by an older vet, which kept no checksum'):
        old = load_model(folder)
    combine([folder], tmp_path / 'again')
    recwarn.clear()
    new = load_model(tmp_path / 'again')
    assert not [w for w in recwarn if 'checksum' in str(w.message)]
    assert all(torch.equal(value, new.trained_state()[name]) for name, value in old.trained_state().items())
    path.write_text(json.dumps(without | dict(format=2)))
    with pytest.raises(DataError, match='lacks the sha256 of tuner.safetensors'):
        load_model(folder)


@pytest.mark.parametrize('other', [7, 'abc', 'G' * 64, None])
def test_every_checksum_is_a_sha256(folder, other):
    path = folder / 'configuration.json'
    configuration = json.loads(path.read_text())
    path.write_text(json.dumps(configuration | dict(sha256=configuration['sha256'] | {'notes.txt': other})))
    with pytest.raises(DataError, match='as sha256; allowed: a dict of file names'):
        load_model(folder)
