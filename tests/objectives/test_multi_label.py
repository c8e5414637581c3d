"""Images of several classes, from the table to the pipeline."""

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from tests.objectives.conftest import TAGS, Tagged, trainer_of
from vet.core.objective import build_objective
from vet.engine.evaluate import compute_metrics
from vet.errors import UserError
from vet.pipelines import pipeline


def test_metrics_against_scikit_learn():
    draw = np.random.default_rng(1)
    labels, scores = draw.integers(0, 2, (40, 3)), draw.random((40, 3))
    objective = build_objective(dict(type='MultiLabel', thresholds=[0.2, 0.5, 0.8]), TAGS)
    decided = scores >= np.array([0.2, 0.5, 0.8])
    found = compute_metrics(
        ['mAP', 'average_precision', 'f1', 'micro_f1', 'subset_accuracy'], scores, labels, objective
    )
    assert found['mAP'] == pytest.approx(average_precision_score(labels, scores, average='macro'))
    assert found['average_precision.loop'] == pytest.approx(
        average_precision_score(labels[:, 1], scores[:, 1])
    )
    assert found['f1'] == pytest.approx(f1_score(labels, decided, average='macro'))
    assert found['micro_f1'] == pytest.approx(f1_score(labels, decided, average='micro'))
    assert found['subset_accuracy'] == pytest.approx((decided == labels).all(1).mean())


def test_thresholds_are_those_of_the_best_f1():
    draw = np.random.default_rng(2)
    labels = draw.integers(0, 2, (60, 3))
    scores = np.clip(labels * 0.2 + draw.random((60, 3)) * 0.4, 0, 1)
    labels[:, 2] = 0  # nothing can be chosen
    objective = build_objective(dict(type='MultiLabel'), TAGS)
    objective.choose(scores, labels)
    for k in range(2):
        best = max(f1_score(labels[:, k], scores[:, k] >= at) for at in scores[:, k])
        assert f1_score(labels[:, k], scores[:, k] >= objective.thresholds[k]) == pytest.approx(best)
    assert objective.thresholds[2] == 0.5


def test_from_the_table_to_the_pipeline(tmp_path, table_run, tables):
    trainer = table_run(tmp_path / 'run', {})
    assert trainer.model.classes == ['large', 'loop'] and trainer.settings.evaluation.metrics[0] == 'mAP'
    summary = trainer.train()
    assert summary['mAP'] > summary['before']['mAP'] and 0 <= summary['subset_accuracy'] <= 1
    configuration = json.loads((trainer.folder.output / 'configuration.json').read_text())
    entry = configuration['model']['objective']
    assert (
        entry['type'] == 'MultiLabel' and len(entry['thresholds']) == 2 and entry['thresholds'] != [0.5, 0.5]
    )
    classify, image = pipeline(model=trainer.folder.output, device='cpu'), tables / 'test-0.png'
    answer = classify(image)
    scores = dict(zip(trainer.model.classes, classify.model.objective.thresholds))
    assert answer == trainer.predict([image])[0]
    assert all(score >= scores[label] for score, label in zip(answer['scores'], answer['labels']))
    every = [classify(tables / f'test-{i}.png') for i in range(20)]
    assert {len(one['labels']) for one in every} > {1} or {len(one['labels']) for one in every} != {1}
    assert len(classify(image, topk=1)['labels']) <= 1
    again = trainer.evaluate('test')
    assert all(summary[name] == again[name] for name in again)


def test_the_run_resumes_with_its_thresholds(tmp_path, table_run):
    trainer = table_run(tmp_path / 'run', {}, **{'train.max_epochs': 1})
    trainer.train()
    made = trainer.model.objective.thresholds
    other = table_run(tmp_path / 'run', {}, **{'train.max_epochs': 1})
    other.folder.resume = 'auto'
    other.train()
    assert other.model.objective.thresholds == made


def test_mixtures_and_a_fixed_threshold(tmp_path):
    options = {
        'train.mixup': 0.4,
        'train.cutmix': 1.0,
        'train.max_epochs': 1,
        'train.loss': dict(type='AsymmetricLoss'),
        'model.objective': dict(type='MultiLabel', threshold=0.3),
    }
    trainer = trainer_of(tmp_path / 'run', Tagged, **options)
    trainer.train()
    assert trainer.model.objective.entry() == dict(type='MultiLabel', threshold=0.3)
    assert pipeline(model=trainer.folder.output, device='cpu').model.objective.thresholds == [0.3] * 3


@pytest.mark.parametrize(
    'options, message',
    [
        ({'evaluation.metrics': 'accuracy'}, "'accuracy' is for targets that are one class.*mAP"),
        ({'evaluation.metrics': ['mAP', 'mae']}, "'mae' is for targets that are numbers"),
        (
            {'model.objective': dict(type='MultiLabel', thresholds=[0.5])},
            'has 1 numbers, but there are 3 classes',
        ),
        ({'model.objective': dict(type='MultiLabl')}, "unknown objective 'MultiLabl'"),
        ({'model.tuners': [dict(type='GPS')]}, 'GPS compares images by their class'),
    ],
)
def test_refusals(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        trainer_of(tmp_path / 'run', Tagged, **options).train()
