"""evaluation.tta: the views, the mean of their scores, and equal answers of evaluate, vet test and pipeline."""

import argparse
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.engine.runs import build, small
from vet import pipeline
from vet.cli.test import evaluate
from vet.config import Views
from vet.core.augmented import averaged, views_of
from vet.core.objective import build_objective
from vet.errors import UserError
from vet.hub.model_folder import load_model

ALL = dict(flip=True, five_crops=0.75, scales=[1.0, 1.5])


def test_views():
    images = torch.rand(2, 3, 8, 8)
    assert views_of(images, Views())[0] is images
    one, mirrored = views_of(images, Views(flip=True))
    assert one is images and mirrored.equal(images.flip(3))
    crops = views_of(images, Views(five_crops=0.5))
    parts = [images[..., y : y + 4, x : x + 4] for y, x in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))]
    for crop, part in zip(crops, parts, strict=True):
        assert crop.equal(F.interpolate(part, size=(8, 8), mode='bilinear', antialias=True))
    assert views_of(images, Views(scales=[1, 2]))[0] is images
    assert views_of(images, Views(scales=[1, 2]))[1].equal(crops[4])
    assert len(views_of(images, Views(**ALL))) == 20


@pytest.mark.parametrize(
    'entry',
    [
        dict(type='SingleLabel'),
        dict(type='SingleLabel', temperature=2.5),
        dict(type='MultiLabel'),
        dict(type='Ordinal'),
    ],
)
def test_scores_are_the_mean_of_the_scores_of_the_views(entry):
    objective = build_objective(entry, ['a', 'b', 'c'])
    outputs = 4 * torch.randn(5, 6, objective.num_outputs, generator=torch.Generator().manual_seed(0))
    wanted = torch.stack([objective.scores(each) for each in outputs]).mean(0)
    torch.testing.assert_close(objective.scores(objective.mean(outputs)), wanted, rtol=1e-4, atol=1e-6)


def test_numbers_are_averaged():
    objective = build_objective(dict(type='Regression'), ['road'])
    images = torch.rand(4, 3, 8, 8)
    left = averaged(lambda view: view[:, 0, 0, :1], images, Views(flip=True), objective)
    assert left.allclose((images[:, 0, 0, :1] + images[:, 0, 0, -1:]) / 2)


@pytest.fixture(scope='module')
def trainer(tmp_path_factory):
    """A finished run with 20 views of each test image."""
    options = {'train.max_epochs': 1, 'evaluation.tta': ALL, 'evaluation.before': False}
    made = build(tmp_path_factory.mktemp('tta') / 'run', **options)
    made.train()
    return made


@pytest.mark.slow
def test_a_run_a_folder_and_a_pipeline_agree(trainer):
    images = [trainer.data['test'][i][0] for i in range(len(trainer.data['test']))]
    model = load_model(trainer.folder.output)
    pixels = torch.stack([trainer._view[None](image) for image in images])
    with torch.no_grad():
        wanted = torch.stack([model(view).softmax(1) for view in views_of(pixels, Views(**ALL))]).mean(0)
    answers = pipeline(model=trainer.folder.output)(images[:60], topk=5)
    for answer, row in zip(answers, wanted):
        found = dict(zip(answer['labels'], answer['scores']))
        assert [found[name] for name in model.classes] == pytest.approx(row.tolist(), abs=1e-5)
    accuracy = np.mean(wanted.argmax(1).numpy() == np.array(trainer.data['test'].targets))
    assert trainer.evaluate()['accuracy'] == pytest.approx(accuracy)
    assert trainer.predict(images[:1])[0]['scores'][0] == pytest.approx(answers[0]['scores'][0], abs=1e-5)
    asked = dict(model=str(trainer.folder.output), split='test', imports=[], cfg_options=None, device='cpu')
    tested = evaluate(argparse.Namespace(**asked, data_root=None, backbone=None, knn=None))
    assert tested['accuracy'] == pytest.approx(accuracy)


def test_a_strange_folder_may_not_ask_for_more(trainer, tmp_path):
    folder = tmp_path / 'folder'
    trainer.save_pretrained(folder)
    path = folder / 'configuration.json'
    values = json.loads(path.read_text())
    values['evaluation']['tta'] = dict(scales=[1.0] * 9)
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match='as evaluation.tta; allowed: a dict with flip'):
        pipeline(model=folder)


@pytest.mark.parametrize(
    'options, text',
    [
        ({'evaluation.tta': dict(five_crops=1.5)}, 'evaluation.tta.five_crops'),
        ({'evaluation.tta': dict(scales=[0.5])}, 'evaluation.tta.scales'),
        ({'evaluation.tta': dict(flip=True), 'train.cache_features': True}, 'keeps one view of each image'),
    ],
)
def test_bad_values_are_refused(options, text, tmp_path):
    with pytest.raises(UserError, match=text):
        small(tmp_path / 'run', **options)


def test_a_run_of_an_older_vet_goes_on(tmp_path):
    """Its config.json has fewer settings."""
    summary = small(tmp_path / 'run', **{'train.max_epochs': 1}).train()
    path = tmp_path / 'run' / 'config.json'
    values = json.loads(path.read_text())
    del values['evaluation']['tta'], values['train']['groups'], values['custom_hooks']
    path.write_text(json.dumps(values))
    assert small(tmp_path / 'run', 'auto', **{'train.max_epochs': 1}).train() == summary
