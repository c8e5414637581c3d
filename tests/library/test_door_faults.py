"""Mistakes at the library door that once passed in silence: another network, a shared tuner, a merged state."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vet
from tests.library.networks import images, same, state_of, trained, vit
from vet.errors import DataError, UserError


class Body(nn.Module):
    """A user's own network. Its settings are a convolution's, a function, and a buffer that is not saved."""

    def __init__(self, act=F.relu, scale=1.0, mask=(1.0, 1.0), **settings):
        super().__init__()
        torch.manual_seed(0)
        self.c = nn.Conv2d(3, 8, 3, **settings)
        self.mid, self.fc = nn.Linear(8, 8), nn.Linear(8, 4)
        self.act = act
        self.mask = torch.tensor(mask)
        self.register_buffer('scale', torch.tensor(scale), persistent=False)

    def forward(self, x):
        return self.fc(self.mid(self.act(self.c(x)).mean((2, 3)) * self.scale * self.mask.sum()))


def body(**settings):
    return Body(**settings).eval()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The folder of a tuned Body."""
    found = tmp_path_factory.mktemp('door') / 'body'
    trained_body().save(found)
    return found


def trained_body():
    return vet.tune(body(), vet.LoRA(2, at='mid'), train='fc', example=images(1))


SETTINGS = [
    (dict(stride=2), "settings differ. The first is that of 'c'"),
    (dict(dilation=2), "settings differ. The first is that of 'c'"),
    (dict(padding=1), "settings differ. The first is that of 'c'"),
    (dict(act=F.gelu), 'act=relu.*act=gelu'),
    (dict(scale=2.0), "not in its state_dict differ. The first is 'scale'"),
    (dict(mask=(1.0, 2.0)), "not in its state_dict differ. The first is 'mask'"),
]


@pytest.mark.parametrize('other, text', SETTINGS, ids=[str(list(other)) for other, _ in SETTINGS])
def test_another_setting_is_another_network(folder, other, text):
    with pytest.raises(DataError, match=text):
        vet.load(folder, body(**other), images(1))
    vet.load(folder, body(), images(1))


def test_another_type_of_numbers_is_told(folder):
    with pytest.raises(DataError, match='Load first, and convert afterwards'):
        vet.load(folder, body().bfloat16(), images(1))


def edited(folder, tmp_path, **changes):
    """A copy of the folder, whose `network` has these values. None: the key is deleted."""
    copy = shutil.copytree(folder, tmp_path / 'edited')
    file = copy / 'configuration.json'
    configuration = json.loads(file.read_text())
    described = configuration['network'] | changes
    configuration['network'] = {key: value for key, value in described.items() if value is not None}
    file.write_text(json.dumps(configuration))
    return copy


EDITED = [
    ('whole', None), ('whole', 3), ('whole', [{}]), ('kind', None), ('kind', 3), ('settings', None),
    ('shapes', []), ('values', 3), ('values', {'mid.weight': 3}), ('sha256', 'x'), ('buffers', {'scale': [1]}),
]  # fmt: skip


@pytest.mark.parametrize('key, value', EDITED, ids=[f'{key} {value}' for key, value in EDITED])
def test_an_edited_description_is_refused(folder, tmp_path, key, value):
    with pytest.raises(DataError, match=f'network.{key} .*; allowed: '):
        vet.load(edited(folder, tmp_path, **{key: value}), body(), images(1))


def test_a_missing_folder_is_told_how_folders_are_made(tmp_path):
    for missing in ('nosuch', tmp_path):
        with pytest.raises(DataError, match=r'or the folder that tuned.save\(…\) wrote'):
            vet.load(missing, body())


def test_a_tuner_belongs_to_one_network():
    tuner = vet.LoRA(2)
    first = trained(vet.tune(vit(), tuner))
    scores, other = first(images()), vit()
    for call in (lambda: vet.tune(other, tuner), lambda: vet.tune(other, fresh := vet.LoRA(2), fresh)):
        with pytest.raises(UserError, match='this LoRA is attached to a network already'):
            call()
    assert torch.equal(first(images()), scores) and torch.equal(other(images()), vit()(images()))
    first.detach()
    vet.tune(other, tuner)


def test_a_failed_load_leaves_the_network_as_it_was(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / 'damaged')
    file = copy / 'tuner.safetensors'
    file.write_bytes(file.read_bytes()[:-1] + b'x')
    net = body()
    before = state_of(net)
    with pytest.raises(DataError):
        vet.load(copy, net, images(1))
    assert same(state_of(net), before) and all(parameter.requires_grad for parameter in net.parameters())
    vet.load(folder, net, images(1))


def test_a_merged_state_is_neither_given_nor_taken():
    tuned = trained(vet.tune(vit(), vet.LoRA(2)))
    state = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    net = tuned.merge()
    for refused in (tuned.state_dict, lambda: tuned.load_state_dict(state), nn.Sequential(tuned).state_dict):
        with pytest.raises(UserError, match=r'the model is merged.* Call unmerge\(\) first'):
            refused()
    with pytest.raises(UserError, match='cannot be trained'):
        net.train()(images()).sum().backward()
    net.eval()(images()).sum().backward()
    tuned.unmerge()
    tuned.load_state_dict(state)
    net.train()(images()).sum().backward()


@pytest.mark.parametrize('kind', [torch.bfloat16, torch.float64])
def test_detach_and_unmerge_follow_another_type(kind):
    tuned = trained(vet.tune(vit(), vet.LoRA(2))).to(kind)
    x = images().to(kind)
    assert tuned.detach()(x).dtype == kind
    tuned = trained(vet.tune(vit(), vet.LoRA(2)))
    tuned.merge()
    tuned.to(kind).unmerge()
    assert tuned(x).dtype == kind and tuned.detach()(x).dtype == kind


def test_a_detached_network_is_not_saved(tmp_path):
    tuned = trained_body()
    tuned.detach()
    with pytest.raises(UserError, match='detached, so there is nothing to save'):
        tuned.save(tmp_path / 'none')
    assert not (tmp_path / 'none').exists()
