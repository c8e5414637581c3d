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
    with pytest.raises(UserError, match='cannot be trained'):
        tuned(images()).sum().backward()
    tuned(images().requires_grad_()).sum().backward()  # shows how the input matters
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


@pytest.mark.parametrize('kind', [torch.bfloat16, torch.float64])
def test_a_network_of_another_type_runs_with_its_tuners(kind, tmp_path):
    net, x = vit().to(kind), images().to(kind)
    before = net(x)
    tuned = vet.tune(net, vet.LoRA(2), vet.AdaptFormer())
    assert torch.equal(tuned(x), before)
    tuned.train()(x).float().sum().backward()
    assert all(one.dtype == kind and one.grad is not None for one in tuned.trainable().values())
    tuned.eval().save(tmp_path / 'folder')
    assert torch.equal(vet.load(tmp_path / 'folder', vit().to(kind))(x), tuned(x))


class Counting(Body):
    """The forward counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer('count', torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.count += 1
        return super().forward(x)


def test_a_buffer_that_the_forward_changes_is_given_back_and_saved(tmp_path):
    net = Counting().eval()
    tuned = vet.tune(net, vet.AdaptFormer(at='mid'), train='fc', example=images(1))
    assert net.count == 0
    tuned.save(tmp_path / 'quiet')
    tuned(images())
    assert net.count == 1
    tuned.save(tmp_path / 'moved')
    assert vet.load(tmp_path / 'moved', Counting().eval()).count == 1
    tuned.detach()
    assert net.count == 0


class Tied(nn.Module):
    """The weight of `fc` is that of `emb`, as in a masked autoencoder with tied tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.c1, self.fc = nn.Linear(8, 8), nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8)
        self.fc.weight = self.emb.weight

    def forward(self, x):
        return self.fc(self.emb(self.c1(x).mean((2, 3))))


@pytest.mark.parametrize('train', ['emb', 'fc', 'fc.weight', 'emb.*'])
def test_tied_weights_stay_tied(train, tmp_path):
    net = Tied()
    shared, before = net.emb.weight, net.emb.weight.clone()
    tuned = trained(vet.tune(net, vet.LoRA(2, at='c1'), train=train, example=images(1)))
    assert net.fc.weight is net.emb.weight and not torch.equal(net.fc.weight, before)
    tuned.save(tmp_path / 'tied')
    loaded = vet.load(tmp_path / 'tied', Tied(), images(1)).eval()
    assert torch.equal(loaded(images()), tuned(images())) and loaded.fc.weight is loaded.emb.weight
    tuned.detach()
    assert net.fc.weight is shared and net.emb.weight is shared and torch.equal(shared, before)


def test_all_parameters_of_a_tied_network_train():
    net = Tied()
    vet.tune(net, vet.Full(), train='fc', example=images(1))
    assert net.fc.weight is net.emb.weight and net.fc.weight.requires_grad


def test_a_tied_weight_is_not_merged():
    tuned = trained(vet.tune(Tied(), vet.LoRA(2, at='fc'), train='c1', example=images(1)))
    with pytest.raises(UserError, match="'weight' of Linear cannot be merged: the weight is tied"):
        tuned.merge()
    assert tuned.fc.weight is tuned.emb.weight and not tuned.is_merged


class Frozen(Body):
    """The forward computes `mid` without gradients, and never calls `aux`."""

    def __init__(self):
        super().__init__()
        self.aux = nn.Linear(8, 8)

    def forward(self, x):
        x = self.act(self.c(x)).mean((2, 3))
        with torch.no_grad():
            x = self.mid(x)
        return self.fc(x)


@pytest.mark.parametrize('at', ['mid', 'aux', ['fc', 'aux']])
def test_a_tuner_that_never_trains_is_told(at):
    with pytest.warns(UserWarning, match='2 of [24] parameters of the tuners get no gradient, such as'):
        vet.tune(Frozen(), vet.LoRA(2, at=at), train='fc', example=images(1))


@pytest.mark.filterwarnings('error')
def test_a_tuner_that_trains_is_not_told():
    vet.tune(vit(), vet.LoRA(2), vet.BitFit(), vet.AdaptFormer())
