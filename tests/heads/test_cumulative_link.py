"""The cumulative link head: its probabilities and likelihood in float64, a run, its answers and its files."""

import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit

from tests.engine.runs import SmallDigits, small
from tests.objectives.conftest import trainer_of
from vet.core.loss import Loss
from vet.core.objective import build_objective
from vet.errors import UserError
from vet.hub.card import model_card
from vet.hub.export import export
from vet.pipelines import pipeline
from vet.registry import HEADS

C, CLASSES = 6, ['low', 'middle', 'high', 'top']
HEAD = dict(type='CumulativeLink')
ORDINAL = build_objective(dict(type='Ordinal'), CLASSES)


class Ranked(SmallDigits):
    objective = dict(type='Ordinal')


def head(classes: int, steps: list[float] | None = None):
    torch.manual_seed(0)
    made = HEADS.build(dict(HEAD, num_classes=classes - 1), in_features=C)
    with torch.no_grad():
        made.fc.weight.normal_(std=2)
        if steps is not None:
            made.steps.copy_(torch.tensor(steps))
    return made


def below(made, features: torch.Tensor) -> np.ndarray:
    """(B, K - 1): theta_k - f in float64, by NumPy."""
    first, *others = made.steps.detach().double().numpy()
    thresholds = np.cumsum([first, *(np.log1p(np.exp(np.array(others))) + 1e-6)])
    return thresholds - features.double().numpy() @ made.fc.weight.detach().double().numpy().T


@pytest.mark.parametrize('steps', [[-1.0, 0.3, 2.0], [0.5, -14.0, 5.0], [-2.0, -200.0, -200.0]])
def test_scores_and_loss_are_those_of_the_model(steps):
    made = head(4, steps)
    features = torch.randn(200, C, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(4, (200,), generator=torch.Generator().manual_seed(2))
    outputs = made(features)
    z = below(made, features)
    edges = [np.zeros((200, 1)), expit(z), np.ones((200, 1))]
    expected = np.diff(np.concatenate(edges, 1))
    np.testing.assert_allclose(ORDINAL.scores(outputs).detach().numpy(), expected, atol=1e-6)
    losses = Loss(None, ORDINAL)(outputs, labels)
    # log P(y = k), without the difference of two numbers that are nearly equal
    inner = log_expit(z[:, 1:]) + log_expit(-z[:, :-1]) + np.log(-np.expm1(z[:, :-1] - z[:, 1:]))
    logs = np.concatenate([log_expit(z[:, :1]), inner, log_expit(-z[:, -1:])], 1)
    expected = -logs[np.arange(200), labels] / 3
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=2e-4, atol=1e-6)
    losses.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


def test_the_start_and_the_parameters():
    made = HEADS.build(dict(HEAD, num_classes=4), in_features=C)
    scores = build_objective(dict(type='Ordinal'), 'abcde').scores(made(torch.zeros(1, C)))
    np.testing.assert_allclose(scores.detach().numpy(), [[0.2] * 5], atol=1e-5)
    assert sum(parameter.numel() for parameter in made.parameters()) == C + 4


def test_two_classes_are_a_logistic_regression():
    made, features = head(2, [0.7]), torch.randn(9, C, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(made(features), features @ made.fc.weight.T - 0.7)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    options = {'model.head': HEAD, 'train.optimizer.lr': 0.02}
    trainer = trainer_of(tmp_path_factory.mktemp('ranked') / 'run', Ranked, **options)
    return trainer, trainer.train()


def test_a_run_from_the_dataset_to_the_pipeline(run):
    trainer, summary = run
    assert summary['rank_mae'] < summary['before']['rank_mae']
    image = SmallDigits('test')[0][0]
    answer = pipeline(model=trainer.folder.output, device='cpu')(image)
    assert answer == trainer.predict([image], topk=5)[0]
    assert len(answer['labels']) == 5 and sum(answer['scores']) == pytest.approx(1)
    assert 'CumulativeLink' in model_card(trainer.folder.output)


@pytest.mark.slow
@pytest.mark.parametrize('to, name', [('onnx', 'model.onnx'), ('torch-export', 'model.pt2')])
@pytest.mark.parametrize('with_preprocessing', [False, True])
def test_an_exported_graph(run, tmp_path, to, name, with_preprocessing):
    """`export` compares the file with the model."""
    done = export(run[0].folder.output, tmp_path / name, to, with_preprocessing=with_preprocessing)
    assert done.difference < 1e-4 and done.path.exists()


@pytest.mark.parametrize(
    'options, message',
    [
        (
            {'model.objective': dict(type='SingleLabel')},
            "the head 'CumulativeLink' is for targets that are ordered classes, but .* one class",
        ),
        ({'evaluation.calibrate': True}, "the objective 'Ordinal' has no temperature"),
        ({'train.loss': dict(type='CrossEntropyLoss')}, 'Losses for such targets: CornLoss'),
    ],
)
def test_refusals(tmp_path, options, message):
    given = {'model.objective': dict(type='Ordinal'), 'model.head': HEAD} | options
    with pytest.raises(UserError, match=message):
        small(tmp_path / 'run', **given).train()
