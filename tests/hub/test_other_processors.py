"""A model folder opens on another kind of processor, where resampled positions have other bits; and
only on the right weights.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.nets import images
from vet.backbones.timm_files import read_again
from vet.core.assemble import build_classifier
from vet.core.backbone import weights_sha256
from vet.errors import DataError
from vet.hub.model_folder import load_model, save_model
from vet.registry import BACKBONES

VIT = dict(patch_size=16, embed_dim=64, depth=2, num_heads=2)
SWIN = dict(embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4))
OPENS = (
    'import sys, torch\nfrom vet.core.backbone import weights_sha256\nfrom vet.hub.model_folder import '
    'load_model\nmodel = '
    'load_model(sys.argv[1])\nprint(weights_sha256(model.backbone.network.state_dict()), '
    'model.backbone.identity["sha256"])'
)


@pytest.fixture
def saved(tmp_path):
    """saved(name, kwargs, size): a folder on a file of weights for larger images, and the model."""

    def save(name='vit_tiny_patch16_224', kwargs=VIT, size=112):
        torch.manual_seed(1)
        weights = tmp_path / f'{name}.safetensors'
        save_file(timm.create_model(name, num_classes=0, **kwargs).state_dict(), weights)
        backbone = BACKBONES.build(
            dict(type='timm', name=name, checkpoint=str(weights), kwargs=dict(kwargs, img_size=size))
        )
        model = build_classifier(backbone, [], dict(type='Linear'), ['a', 'b'])
        settings = dict(
            model=dict(tuners=[], head=dict(type='Linear'), tasks={}),
            dataset={},
            train={},
            evaluation={},
            seed=0,
        )
        save_model(model, tmp_path / 'model', dict(settings=settings, metrics={}))
        return tmp_path / 'model', model

    return save


def opened(folder, capability):
    """The sha256 of the network, and its identity's, in a new process that uses these instructions of
    the processor.
    """
    env = {**os.environ, **({'ATEN_CPU_CAPABILITY': capability} if capability else {})}
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', OPENS, str(folder)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    'net',
    [('vit_tiny_patch16_224', VIT, 112), ('swin_tiny_patch4_window7_224', SWIN, 128)],
    ids=['vit', 'swin'],
)
def test_the_right_file_is_accepted_with_other_instructions(saved, net):
    folder, model = saved(*net)
    said = model.backbone.identity['sha256']
    assert model.backbone.is_resampled and said != weights_sha256(model.backbone.network.state_dict())
    for capability in (None, 'default'):
        assert opened(folder, capability)[1] == said


def test_other_weights_are_refused_all_the_same(saved, tmp_path):
    folder, model = saved()
    torch.manual_seed(2)
    save_file(
        timm.create_model('vit_tiny_patch16_224', num_classes=0, **VIT).state_dict(),
        tmp_path / 'vit_tiny_patch16_224.safetensors',
    )
    with pytest.raises(DataError, match='not the backbone weights that were tuned'):
        load_model(folder)


def test_a_folder_of_an_older_vet_opens_where_it_was_made(saved):
    """It says the sha256 of the network, whose positions were resampled."""
    folder, model = saved()
    path = folder / 'configuration.json'
    configuration = json.loads(path.read_text())
    configuration['model']['backbone']['sha256'] = weights_sha256(model.backbone.network.state_dict())
    path.write_text(json.dumps(configuration))
    x = images(size=112)
    with torch.no_grad():
        assert torch.equal(load_model(folder)(x), model.eval()(x))


def test_without_resampling_the_sha256_is_that_of_the_network(saved):
    _, model = saved(size=224)
    assert not model.backbone.is_resampled
    assert model.backbone.identity['sha256'] == weights_sha256(model.backbone.network.state_dict())


def test_two_sizes_of_one_file_are_not_taken_for_one_network(saved):
    assert saved(size=112)[1].backbone.identity['sha256'] != saved(size=96)[1].backbone.identity['sha256']


def test_what_timm_downloaded_is_read_again_from_its_cache(tmp_path, monkeypatch):
    """A pretrained network is made by timm alone: its file lies in the cache of the hub's client."""
    name = 'vit_tiny_patch16_224.augreg_in21k_ft_in1k'
    network = timm.create_model(name.partition('.')[0], num_classes=0)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    hub = tmp_path / f'models--timm--{name}'
    snapshot = hub / 'snapshots' / ('0' * 40)
    snapshot.mkdir(parents=True)
    (hub / 'refs').mkdir()
    (hub / 'refs/main').write_text('0' * 40)
    state = network.state_dict()
    save_file(state, snapshot / 'model.safetensors')
    backbone = BACKBONES.build(dict(type='timm', name=name, kwargs=dict(img_size=112)))
    assert backbone.is_resampled
    assert weights_sha256(read_again(backbone.network)) == weights_sha256(state)
    shutil.rmtree(hub)
    assert read_again(backbone.network) is None
