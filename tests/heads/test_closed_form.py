"""Heads in closed form: against scikit-learn, as a whole training, and as the start of a training."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier

from tests.engine.runs import SmallDigits, small
from tests.objectives.conftest import Measured, Tagged, trainer_of
from vet.errors import UserError
from vet.pipelines import pipeline
from vet.registry import HEADS

DRAW = np.random.default_rng(0)
LABELS = np.arange(60) % 3
FEATURES = DRAW.standard_normal((60, 5)) @ DRAW.standard_normal((5, 5)) + LABELS[:, None]
CODED = torch.eye(3)[LABELS]


def fitted(coded=CODED, **entry):
    head = HEADS.build(dict(**entry, num_classes=coded.shape[1]), in_features=5)
    head.fit(torch.from_numpy(FEATURES), coded)
    with torch.no_grad():
        return head(torch.from_numpy(FEATURES)).numpy()


def test_lda_without_shrinkage_is_scikit_learns():
    theirs = LinearDiscriminantAnalysis(solver='lsqr').fit(FEATURES, LABELS).decision_function(FEATURES)
    np.testing.assert_allclose(fitted(type='LDA', shrinkage=0.0), theirs, rtol=1e-4, atol=1e-4)


def test_lda_shrinks_as_ledoit_and_wolf():
    means = np.stack([FEATURES[LABELS == k].mean(0) for k in range(3)])
    inverse = LedoitWolf(assume_centered=True).fit(FEATURES - means[LABELS]).precision_
    expected = FEATURES @ inverse @ means.T - np.diag(means @ inverse @ means.T) / 2 + np.log(1 / 3)
    np.testing.assert_allclose(fitted(type='LDA'), expected, rtol=1e-4, atol=1e-4)


def test_lda_takes_shares_of_classes_and_a_class_without_images():
    soft = torch.cat([CODED, torch.zeros(60, 1)], 1)
    assert np.isfinite(fitted(soft, type='LDA')).all()
    np.testing.assert_allclose(fitted(soft, type='LDA')[:, :3], fitted(type='LDA'), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'features, shrinkage',
    [(torch.from_numpy(FEATURES[:4]), 0.0), (torch.ones(4, 5), None), (torch.ones(4, 5), 1.0)],
)
def test_lda_of_too_few_directions_is_refused(features, shrinkage):
    head = HEADS.build(dict(type='LDA', num_classes=3, shrinkage=shrinkage), in_features=5)
    advice = 'Give more images' if shrinkage is None else 'Leave shrinkage out'
    with pytest.raises(UserError, match=f'from 4 images with 5 features.*too few directions. {advice}'):
        head.fit(features, CODED[:4])


@pytest.mark.parametrize('head', ['LDA', 'Ridge'])
def test_features_that_are_not_finite_are_refused(tmp_path, head):
    trainer = small(tmp_path / 'run', **{'model.head': dict(type=head), 'train.max_epochs': 0})
    with torch.no_grad():
        trainer.model.backbone.network.norm.bias.fill_(float('inf'))
    with pytest.raises(UserError, match=f'not finite.*the head {head!r} cannot be computed'):
        trainer.train()


def test_ridge_is_scikit_learns():
    theirs = RidgeClassifier(alpha=3.0).fit(FEATURES, LABELS).decision_function(FEATURES)
    np.testing.assert_allclose(2 * fitted(type='Ridge', alpha=3.0) - 1, theirs, rtol=1e-4, atol=1e-4)
    assert (fitted(type='Ridge').argmax(1) == LABELS).mean() > 0.5


@pytest.mark.parametrize('head', ['LDA', 'Ridge'])
def test_a_whole_training_without_an_epoch(tmp_path, head):
    options = {
        'model.head': dict(type=head),
        'model.tuners': [dict(type='LinearProbe')],
        'train.max_epochs': 0,
    }
    trainer = small(tmp_path / 'run', **options)
    summary = trainer.train()
    assert summary['accuracy'] == summary['before']['accuracy'] > 0.7 and summary['steps'] == 0
    image = SmallDigits('test')[0][0]
    answer = pipeline(model=trainer.folder.output, device='cpu')(image)
    assert answer == trainer.predict([image], topk=5)[0]


def test_kept_features_give_the_same_head(tmp_path, monkeypatch):
    monkeypatch.setenv('VET_CACHE_DIR', str(tmp_path / 'cache'))
    options = {'model.head': dict(type='LDA'), 'model.tuners': [dict(type='LinearProbe')]}
    heads = []
    for keeps in (False, True):
        trainer = small(
            tmp_path / str(keeps), **options, **{'train.max_epochs': 0, 'train.cache_features': keeps}
        )
        trainer.train()
        heads.append(trainer.model.head.fc.weight)
    torch.testing.assert_close(heads[0], heads[1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_lora_starts_from_lda_and_a_resumed_run_does_not_start_again(tmp_path):
    options = {'model.head': dict(type='LDA')}
    alone = small(tmp_path / 'alone', **options, **{'train.max_epochs': 0}).train()
    trainer = small(tmp_path / 'run', **options)
    summary = trainer.train()
    assert summary['before']['accuracy'] == alone['accuracy']
    assert small(tmp_path / 'run', 'auto', **options).train()['accuracy'] == summary['accuracy']


@pytest.mark.parametrize('kind, metric, least', [(Tagged, 'mAP', 0.8), (Measured, 'r2', 0.3)])
def test_ridge_for_other_targets(tmp_path, kind, metric, least):
    options = {'model.head': dict(type='Ridge'), 'train.max_epochs': 0}
    assert trainer_of(tmp_path / 'run', kind, **options).train()[metric] > least


def test_lda_needs_one_class_for_each_image(tmp_path):
    with pytest.raises(UserError, match="the head 'LDA' is for targets that are one class.*Linear"):
        trainer_of(tmp_path / 'run', Tagged, **{'model.head': dict(type='LDA')})
