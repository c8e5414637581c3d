"""Numbers of images, in the user's units, from the table to the pipeline."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from tests.objectives.conftest import Measured, trainer_of
from vet.core.objective import build_objective
from vet.engine.evaluate import compute_metrics
from vet.errors import DataError, UserError
from vet.pipelines import pipeline
from vet.registry import OBJECTIVES


def test_metrics_against_scikit_learn():
    draw = np.random.default_rng(1)
    labels, scores = draw.random((40, 2)), draw.random((40, 2))
    names = ['mae', 'rmse', 'r2', 'mae_per_target', 'rmse_per_target', 'r2_per_target']
    found = compute_metrics(names, scores, labels, build_objective(dict(type='Regression'), ['x', 'y']))
    for name, function in (('mae', mean_absolute_error), ('rmse', root_mean_squared_error), ('r2', r2_score)):
        assert found[name] == pytest.approx(function(labels, scores))
        assert found[f'{name}_per_target.y'] == pytest.approx(function(labels[:, 1], scores[:, 1]))


def test_targets_are_standardised_and_answers_are_in_the_users_units(tmp_path):
    trainer = trainer_of(tmp_path / 'run', Measured)
    targets = np.array(trainer.data['train'].given)
    objective = trainer.model.objective
    assert objective.state() == dict(
        mean=pytest.approx(targets.mean(0).tolist()), std=pytest.approx(targets.std(0).tolist())
    )
    standard, outputs = objective.for_loss(*[torch.tensor(targets, dtype=torch.float32)] * 2)
    assert standard.mean(0).abs().max() < 1e-2 and (standard.std(0) - 1).abs().max() < 0.02
    summary = trainer.train()
    assert summary['rmse'] < summary['before']['rmse']
    answer = pipeline(model=trainer.folder.output, device='cpu')(trainer.data['test'][0][0])
    assert set(answer) == {'worth', 'share'} and 1.9e6 < answer['worth'] < 2.2e6
    assert answer == trainer.predict([trainer.data['test'][0][0]])[0]
    assert objective.rows(dict(worth=2034567.0, share=0.02)) == [
        ('worth', '2.035e+06 EUR'),
        ('share', '0.02'),
    ]


def test_from_the_table_to_the_pipeline(tmp_path, table_run, tables):
    options = {'train.max_epochs': 4, 'evaluation.select': 'best'}
    trainer = table_run(tmp_path / 'run', dict(targets=['worth', 'share']), **options)
    assert trainer.model.classes == ['worth', 'share']
    summary = trainer.train()
    assert summary['mae'] < summary['before']['mae'] and summary['r2'] <= 1
    log = [json.loads(line) for line in (tmp_path / 'run' / 'log.jsonl').read_text().splitlines()]
    values = [line['val_mae'] for line in log if 'val_mae' in line]
    assert summary['validation'] == min(values)  # less is better
    assert any('mae' in line for line in log) and not any('accuracy' in line for line in log)
    entry = json.loads((trainer.folder.output / 'configuration.json').read_text())['model']['objective']
    assert entry['type'] == 'Regression' and len(entry['mean']) == len(entry['std']) == 2
    answer = pipeline(model=trainer.folder.output, device='cpu')(tables / 'test-0.png')
    assert 3 < answer['worth'] < 11


@pytest.mark.parametrize(
    'options, message',
    [
        ({'train.mixup': 0.2}, "train.mixup is 0.2, but the objective 'Regression' has no mixture"),
        ({'train.cutmix': 1.0}, 'Set train.cutmix to 0'),
        ({'evaluation.metrics': 'accuracy'}, "'accuracy' is for targets that are one class.*mae"),
        ({'train.label_smoothing': 0.1}, "'MSELoss' smooths no labels"),
        (
            {'model.objective': dict(type='Regression', units=dict(wort='x'))},
            "units has 'wort', but the numbers",
        ),
        ({'train.loss': dict(type='CrossEntropyLoss')}, 'Losses for such targets: .*HuberLoss'),
    ],
)
def test_refusals(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        trainer_of(tmp_path / 'run', Measured, **options).train()


@pytest.mark.parametrize(
    'worth, message',
    [
        (lambda i: 3.0, "the number 'worth' is 3 in all 120 training images"),
        (lambda i: 1e9 + i, "'worth' is 1e.09 on average and varies by 34.6398 only.*Subtract a constant, such as 1e.09"),
        (lambda i: 1e30 * (i - 60), "'worth' varies by 3.46398e.31; allowed: 1e-15 to 1e.15"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_learned(tmp_path, worth, message):
    class Other(Measured):
        def __init__(self, split):
            count = 120 if split == 'train' else 60
            super().__init__(split, [(worth(i), float(i)) for i in range(count)])

    with pytest.raises(UserError, match=message):
        trainer_of(tmp_path / 'run', Other)


@pytest.mark.parametrize(
    'text, options, message',
    [
        ('path,road\na.png,0.5\na.png,\n', {}, "line 3 of .* has '' as 'road'; a target is a finite number"),
        ('path,road\na.png,nan\n', {}, "line 2 of .* has 'nan' as 'road'"),
        ('path,road\na.png,much\n', {}, "has 'much' as 'road'"),
        ('path,road\na.png,1_0\n', {}, "has '1_0' as 'road'"),
        ('path,rod\na.png,1\n', {}, "targets names 'road', but the header of .* is 'path,rod'"),
        ('path,road\na.png,1\n', dict(classes=['a']), 'Leave classes and label_map out'),
    ],
)
def test_wrong_tables(tmp_path, text, options, message):
    from vet.datasets.csv import CSV

    (tmp_path / 'table.csv').write_text(text)
    (tmp_path / 'a.png').write_bytes(b'')
    with pytest.raises((UserError, DataError), match=message):
        CSV(file=tmp_path / 'table.csv', targets=['road'], **options)


@pytest.mark.parametrize(
    'entry, message',
    [
        (dict(mean=[0.0, 0.0], std=[1.0, 0.0]), 'std is .*at least 1e-15'),
        (dict(mean=[0.0, 0.0], std=[1.0, -1.0]), 'std is .*at least 1e-15'),
        (dict(mean=[1e300, 0.0], std=[1.0, 1.0]), 'mean is .*at most 1e'),
    ],
)
def test_a_mean_and_a_std_that_no_targets_have(entry, message):
    with pytest.raises(UserError, match=message):
        OBJECTIVES.build(dict(type='Regression', **entry), names=['road', 'sky'])
