"""Several model folders on one backbone: read, called by name, refused where they do not belong together."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.hub.conftest import BACKBONE
from vet import pipeline
from vet.errors import DataError, UnknownNameError, UserError
from vet.hub.model_folder import load_models
from vet.registry import BACKBONES

PICTURES = [
    Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 48, 3), np.uint8)) for i in range(5)
]
LORA, VPT = dict(type='LoRA', rank=2), dict(type='VPT', length=2)


@pytest.fixture
def folders(folder):
    return dict(
        lora=folder(LORA, seed=1, classes='abcd'),
        vpt=folder(VPT, seed=2),
        soft=folder(LORA, seed=3, mean=[0.1, 0.2, 0.3]),
    )


def classifier(folders, **options):
    return pipeline('vision-efficient-tuning', folders, device='cpu', **options)


def same(one, other):
    assert [result['labels'] for result in one] == [result['labels'] for result in other]
    np.testing.assert_allclose(
        *[[result['scores'][:3] for result in results] for results in (one, other)], rtol=1e-5
    )


def test_each_name_gives_what_its_folder_gives(folders):
    classify = classifier(folders)
    for name, path in folders.items():
        assert classify(PICTURES, task=name) == classifier(path)(PICTURES)
    assert classify.classes == dict(lora=list('abcd'), vpt=list('abc'), soft=list('abc'))


def test_each_image_names_its_tuner(folders):
    classify, names = classifier(folders), ['soft', 'lora', 'vpt', 'soft', 'lora']
    alone = [classifier(folders[name])(picture) for name, picture in zip(names, PICTURES)]
    same(classify(PICTURES, task=names), alone)
    same(classify(PICTURES, task=np.array(names)), alone)
    same(classify(PICTURES, task=names, batch_size=2), alone)


def test_a_name_may_be_chosen_before(folders):
    classify = classifier(folders, task='vpt')
    assert classify(PICTURES) == classifier(folders['vpt'])(PICTURES)
    classify.use('soft')
    assert classify(PICTURES) == classifier(folders['soft'])(PICTURES) and classify.classes == list('abc')


def test_the_backbone_is_read_once(folders, monkeypatch):
    made, build = [], BACKBONES.build
    monkeypatch.setattr(
        BACKBONES, 'build', lambda entry, **given: made.append(entry) or build(entry, **given)
    )
    model = load_models(folders)
    assert len(made) == 1
    first, *others = model.tasks.values()
    for other in others:
        assert {id(p) for p in first.backbone.parameters()} == {id(p) for p in other.backbone.parameters()}


def test_an_iterator_leaves_its_callers_mode_alone(folders):
    results = classifier(folders)(iter(PICTURES), batch_size=2, task='lora')
    next(results)
    assert not torch.is_inference_mode_enabled()


def test_refusals(folder, folders, tmp_path):
    classify = classifier(folders)
    with pytest.raises(UnknownNameError, match='unknown task None.*lora, soft, vpt'):
        classify(PICTURES)
    with pytest.raises(UserError, match='one task for each image of a list'):
        classify(PICTURES, task=['lora'])
    with pytest.raises(UserError, match='Only a pipeline of several folders takes a list of tasks'):
        classifier(folders['lora'])(PICTURES, task=['a'] * 5)
    with pytest.raises(DataError, match='is no model folder'):
        classifier(dict(folders, none=tmp_path))
    with pytest.raises(UserError, match='several folders share one backbone; give one path'):
        classifier(folders, backbone={'lora': 'weights.safetensors'})
    with pytest.raises(UserError, match='no folder is given'):
        classifier({})
    with pytest.raises(
        DataError, match="'name': 'vit_small_patch16_224'.*Only models of one backbone can share weights"
    ):
        classifier(dict(folders, other=folder(LORA, name='vit_small_patch16_224')))
    with pytest.raises(DataError, match=r'images of \(64, 64\) .*the network takes \(32, 32\)'):
        classifier(dict(folders, large=_for_images_of(64, folder(LORA))))


def _for_images_of(size, path):
    """The model folder, changed to images of another size."""
    configuration = path / 'configuration.json'
    saved = json.loads(configuration.read_text())
    saved['preprocessing']['size'] = [size, size]
    configuration.write_text(json.dumps(saved))
    return path


def test_other_weights_are_refused(folder, folders, monkeypatch):
    other = folder(LORA)
    configuration = other / 'configuration.json'
    configuration.write_text(
        configuration.read_text().replace(BACKBONES.build(BACKBONE).identity['sha256'], 'f' * 64)
    )
    with pytest.raises(DataError, match='these are not the backbone weights that were tuned'):
        classifier(dict(folders, other=other))
