"""Ordered classes: the loss against its equation, scores, answers, metrics, and a run."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from tests.engine.runs import SmallDigits, small
from tests.objectives.conftest import trainer_of
from vet.cli.vet import main
from vet.core.loss import Loss
from vet.core.objective import build_objective
from vet.engine.evaluate import compute_metrics
from vet.errors import UserError
from vet.hub.card import model_card
from vet.hub.export import export
from vet.hub.model_folder import load_model
from vet.pipelines import pipeline

NAMES = ['low', 'middle', 'high', 'top']
ORDINAL = build_objective(dict(type='Ordinal'), NAMES)
OUTPUTS = torch.tensor([[2.0, 1.0, -1.0], [-3.0, 0.0, 2.0], [3.0, 3.0, 3.0]])


class Ranked(SmallDigits):
    objective = dict(type='Ordinal')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranked')
    options = {'evaluation.select': 'best', 'evaluation.holdout': 0.3, 'evaluation.report': True}
    trainer = trainer_of(folder, Ranked, **options)
    return trainer, trainer.train()


def test_the_loss_counts_the_steps_that_an_image_reaches():
    labels = torch.tensor([1, 0, 3])
    p = OUTPUTS.sigmoid()
    expected = torch.stack([
        -p[0, 0].log() - (1 - p[0, 1]).log(),
        -(1 - p[1, 0]).log(),
        -p[2, 0].log() - p[2, 1].log() - p[2, 2].log(),
    ])  # fmt: skip
    torch.testing.assert_close(Loss(None, ORDINAL)(OUTPUTS, labels), expected / 3)


def test_scores_are_a_distribution_and_the_answer_is_the_median():
    scores = ORDINAL.scores(OUTPUTS)
    p = OUTPUTS.sigmoid()
    torch.testing.assert_close(scores.sum(1), torch.ones(3))
    torch.testing.assert_close(scores[:, 1], p[:, 0] * (1 - p[:, 1]))
    torch.testing.assert_close(scores[:, 3], p.prod(1))
    assert ORDINAL.decide(scores.numpy()).tolist() == [2, 0, 3]
    answers = ORDINAL.answers(OUTPUTS, 2, 5)
    assert [answer['labels'][0] for answer in answers] == ['high', 'low', 'top']
    assert all(len(answer['scores']) == 2 for answer in answers)
    assert len(ORDINAL.answers(OUTPUTS, None, 5)[0]['labels']) == 4


def test_the_mean_of_views_that_are_very_sure():
    views = torch.tensor([[[-900.0, -900.0, 3.0]], [[-900.0, -900.0, 3.0]]])
    assert ORDINAL.scores(ORDINAL.mean(views)).tolist() == [pytest.approx([1, 0, 0, 0], abs=1e-9)]


def test_metrics():
    scores, labels = ORDINAL.scores(OUTPUTS).numpy(), np.array([1, 0, 3])
    found = compute_metrics(ORDINAL.metrics, scores, labels, ORDINAL)
    kappa = cohen_kappa_score(labels, [2, 0, 3], weights='quadratic')
    assert found == {
        'rank_mae': pytest.approx(1 / 3),
        'quadratic_kappa': pytest.approx(kappa),
        'rank_accuracy': pytest.approx(2 / 3),
    }
    same = compute_metrics(['quadratic_kappa'], scores[:1], np.array([2]), ORDINAL)
    assert same == dict(quadratic_kappa=0)


def test_a_run_from_the_dataset_to_the_pipeline(run, monkeypatch, capsys):
    trainer, summary = run
    assert summary['rank_mae'] < summary['before']['rank_mae'] and trainer.model.head.fc.out_features == 4
    image = SmallDigits('test')[0][0]
    answer = pipeline(model=trainer.folder.output, device='cpu')(image)
    assert answer == trainer.predict([image], topk=5)[0] and len(answer['labels']) == 5
    rows = (trainer.folder.path / 'predictions.csv').read_text().splitlines()
    assert rows[0] == 'file,label,answer,score' and len(rows) == 61
    assert 'Confusions' in (trainer.folder.path / 'report.html').read_text()
    assert 'ordered classes' in model_card(trainer.folder.output)


@pytest.mark.slow
def test_an_exported_graph(run, tmp_path):
    trainer, _ = run
    done = export(trainer.folder.output, tmp_path / 'model.pt2', 'torch-export')
    files = {'vet.json': ''}
    network = torch.export.load(done.path, extra_files=files).module()
    model = load_model(trainer.folder.output)
    images = torch.zeros(2, 3, *model.backbone.preprocessing.size)
    with torch.no_grad():
        torch.testing.assert_close(network(images), model(images), rtol=1e-5, atol=1e-5)
    assert json.loads(files['vet.json'])['objective'] == dict(type='Ordinal')


@pytest.mark.slow
@pytest.mark.parametrize('tta', [{}, dict(flip=True)])
def test_an_onnx_graph_gives_the_scores(tmp_path, tta):
    """`export` compares the graph with the model."""
    options = {'model.objective': dict(type='Ordinal'), 'train.max_epochs': 1, 'evaluation.tta': tta}
    trainer = small(tmp_path / 'run', **options)
    trainer.train()
    done = export(trainer.folder.output, tmp_path / 'model.onnx', 'onnx', with_preprocessing=True)
    assert done.difference < 1e-4


@pytest.mark.slow
def test_vet_test(tmp_path, monkeypatch, capsys):
    options = {'model.objective': dict(type='Ordinal'), 'train.max_epochs': 1}
    from tests.engine.runs import build

    summary = build(tmp_path / 'run', **options).train()
    monkeypatch.setattr('sys.argv', ['vet', 'test', str(tmp_path / 'run'), '--device', 'cpu'])
    main()
    found = json.loads(capsys.readouterr().out)
    assert found['rank_mae'] == pytest.approx(summary['rank_mae'], abs=0.02) and len(found) == 3


@pytest.mark.parametrize(
    'options, message',
    [
        ({'evaluation.metrics': 'accuracy'}, "'accuracy' is for targets that are one class.*quadratic_kappa"),
        ({'train.loss': dict(type='CrossEntropyLoss')}, 'Losses for such targets: CornLoss'),
        ({'train.mixup': 0.2}, "the objective 'Ordinal' has no mixture of two targets"),
        ({'model.head': dict(type='LDA')}, "the head 'LDA' is for targets that are one class"),
        ({'evaluation.calibrate': True}, "the objective 'Ordinal' has no temperature"),
    ],
)
def test_refusals(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        small(tmp_path / 'run', **{'model.objective': dict(type='Ordinal')}, **options).train()


def test_one_class_has_no_ranks():
    with pytest.raises(UserError, match='Ordinal has 1 class, alone; ranks need at least 2'):
        build_objective(dict(type='Ordinal'), ['alone'])


def test_the_order_of_the_ranks_is_printed_before_the_training(tmp_path, caplog):
    """Names of a table are sorted, which is no order of ranks."""
    small(tmp_path, **{'model.objective': dict(type='Ordinal'), 'train.max_epochs': 1}).train()
    lines = [line for line in caplog.messages if line.startswith('ranks, ')]
    assert lines == ['ranks, from the lowest: 5 < 6 < 7 < 8 < 9']


def test_a_long_order_is_cut():
    told = build_objective(dict(type='Ordinal'), [f'{rank}' for rank in range(300)]).told
    assert told.endswith(' < 18 < … < 299') and told.startswith('ranks, from the lowest: 0 < 1 < ')
