"""Metrics on scores small enough to count by hand."""

import functools

import numpy as np
import pytest
import torch

from tests.engine.runs import SmallDigits, small
from vet.core.objective import build_objective
from vet.engine.evaluate import compute_metrics, metric_name
from vet.errors import TrainingError, UnknownNameError, UserError
from vet.registry import METRICS

# predicted 0 0 1 2 2 5; ranked below by class number
SCORES = np.eye(6)[[0, 0, 1, 2, 2, 5]] + np.linspace(0.3, 0, 6)
LABELS = np.array([0, 0, 0, 2, 1, 5])


@pytest.mark.parametrize(
    'name, expected',
    [
        ('accuracy', 4 / 6),
        ('mean_per_class_accuracy', (2 / 3 + 0 + 1 + 1) / 4),
        ('macro_f1', (0.8 + 0 + 2 / 3 + 1) / 4),
        ('top2', 5 / 6),
        ('top3', 6 / 6),
        ('top5', 6 / 6),
        ('top10', 6 / 6),
    ],
)
def test_values(name, expected):
    result = compute_metrics([name], SCORES, LABELS)
    assert result == {name: pytest.approx(expected)} and type(result[name]) is float


def test_top5_misses_the_sixth():
    assert compute_metrics(['top5'], SCORES, np.full(6, 5)) == {'top5': pytest.approx(1 / 6)}
    assert compute_metrics(['top5'], np.eye(3), np.array([0, 1, 2])) == {'top5': 1.0}


def test_the_accuracy_of_each_class():
    objective = build_objective(None, list('abcdef'))
    found = compute_metrics(['accuracy_per_class'], SCORES, LABELS, objective)
    assert found == {'accuracy_per_class.a': pytest.approx(2 / 3)} | {
        f'accuracy_per_class.{name}': value for name, value in dict(b=0.0, c=1.0, f=1.0).items()
    }


def test_modelscopes_name():
    assert list(compute_metrics(['vision-efficient-tuning-metric', 'top5'], SCORES, LABELS)) == [
        'accuracy',
        'top5',
    ]
    with pytest.raises(UnknownNameError, match="unknown metric 'acc'"):
        compute_metrics(['acc'], SCORES, LABELS)


def by_class(scores, labels):
    return {str(k): np.mean(scores.argmax(1)[labels == k] == k) for k in np.unique(labels)}


def failing(scores, labels):
    raise IndexError('no such class')


METRICS_OF_OTHERS = {
    'by_class': by_class,
    'failing': failing,
    'text': lambda scores, labels: 'good',
    'none': lambda scores, labels: None,
    'per_image': lambda scores, labels: labels == 1,
    'nested': lambda scores, labels: dict(a=dict(b=1)),
    'complex': lambda *_: 1j,
    'partial': functools.partial(lambda scores, labels, k: k, k=0.5),
    'tensor': lambda *_: torch.tensor(0.25),
    'steps': lambda *_: 1.0,
}
for _name, _metric in METRICS_OF_OTHERS.items():
    if hasattr(_metric, '__name__'):
        _metric.__name__ = _name


@pytest.fixture(autouse=True)
def others(monkeypatch):
    for name, metric in METRICS_OF_OTHERS.items():
        monkeypatch.setitem(METRICS.module_dict, name, metric)


def test_a_metric_may_give_numbers_by_name():
    found = compute_metrics(['accuracy', 'by_class', 'partial', 'tensor'], SCORES, LABELS)
    assert found == {
        'accuracy': pytest.approx(4 / 6),
        'by_class.0': pytest.approx(2 / 3),
        'by_class.1': 0,
        'by_class.2': 1,
        'by_class.5': 1,
        'partial': 0.5,
        'tensor': 0.25,
    }
    assert {type(value) for value in found.values()} == {float}


def test_metrics_of_a_user_have_the_names_of_the_config(monkeypatch):
    def made(k):
        return lambda scores, labels: k

    for k in (1, 2):
        monkeypatch.setitem(METRICS.module_dict, f'made{k}', made(k))
    assert compute_metrics(['made1', 'made2'], SCORES, LABELS) == dict(made1=1, made2=2)
    assert metric_name('balanced_accuracy') == 'mean_per_class_accuracy'


def test_a_metric_changes_no_scores_of_the_next_metric(monkeypatch):
    monkeypatch.setitem(METRICS.module_dict, 'sorting', lambda scores, labels: scores.sort(axis=1))
    with pytest.raises(UserError, match="the metric 'sorting' fails.*read-only"):
        compute_metrics(['sorting', 'accuracy'], SCORES.copy(), LABELS)


@pytest.mark.parametrize(
    'name, error',
    [
        ('failing', 'IndexError: no such class'),
        ('text', 'ValueError'),
        ('none', 'TypeError'),
        ('per_image', 'TypeError'),
        ('nested', 'TypeError'),
        ('complex', 'TypeError'),
    ],
)
def test_a_metric_that_fails_or_gives_no_number(name, error):
    with pytest.raises(
        UserError,
        match=rf"the metric '{name}' fails on scores \(6, 6\) and labels \(6,\): {error}.*gives a numb",
    ):
        compute_metrics([name], SCORES, LABELS)


@pytest.mark.parametrize(
    'names, message',
    [
        (['accuracy', 'failing'], "the metric 'failing' fails"),
        (['steps'], "has the name 'steps', which another entry"),
    ],
)
def test_metrics_are_tried_before_a_run(tmp_path, names, message):
    trainer = small(tmp_path / 'run', **{'evaluation.metrics': names, 'evaluation.before': False})
    with pytest.raises(UserError, match=message):
        trainer.train()
    assert not (tmp_path / 'run').exists()


def test_numbers_by_name_reach_the_summary_and_the_selection(tmp_path):
    options = {
        'evaluation.metrics': ['by_class', 'accuracy'],
        'evaluation.select': 'best',
        'train.max_epochs': 1,
    }
    summary = small(tmp_path / 'run', **options).train()
    assert {f'by_class.{k}' for k in range(5)} <= set(summary) and 0 <= summary['validation'] <= 1


def test_nan_chooses_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS.module_dict, 'nan', lambda *_: float('nan'))
    options = {'evaluation.metrics': ['nan', 'accuracy'], 'train.max_epochs': 1}
    with pytest.raises(
        TrainingError, match='is nan on the validation images of epoch 1, and nan can choose nothing'
    ):
        small(tmp_path / 'best', **options, **{'evaluation.select': 'best'}).train()
    assert small(tmp_path / 'last', **options).train()['selected'] == 'last epoch'


def test_nothing_to_evaluate(tmp_path):
    trainer = small(tmp_path / 'run')
    trainer.data['test'] = SmallDigits('test')
    trainer.data['test'].samples, trainer.data['test'].targets = [], []
    with pytest.raises(UserError, match='the dataset SmallDigits is empty: there is nothing to evaluate'):
        trainer.evaluate()
