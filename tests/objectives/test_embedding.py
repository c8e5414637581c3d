"""Vectors: losses against their equations, metrics by hand, neighbours, and a run."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.engine.runs import SmallDigits, build, small
from tests.objectives.conftest import Measured, trainer_of
from vet.cli.vet import main
from vet.core.loss import Loss
from vet.core.objective import build_objective
from vet.engine.evaluate import compute_metrics, knn_accuracy
from vet.errors import UserError
from vet.hub.card import model_card
from vet.hub.export import export
from vet.metrics.nearest import nearest, votes
from vet.pipelines import pipeline
from vet.registry import HEADS

EMBEDDING = build_objective(dict(type='Embedding'), ['a', 'b', 'c'])
HEAD = {'model.objective': dict(type='Embedding'), 'model.head': dict(type='Embedding', size=16)}
LABELS = torch.tensor([0, 0, 2, 1])


def outputs():
    torch.manual_seed(0)
    vectors, prototypes = F.normalize(torch.randn(4, 6)), F.normalize(torch.randn(3, 6))
    return torch.cat([vectors @ prototypes.T, vectors], 1).double()


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    options = {'evaluation.report': True, 'evaluation.select': 'best', 'evaluation.holdout': 0.3}
    trainer = small(tmp_path_factory.mktemp('embedding'), **HEAD, **options)
    return trainer, trainer.train()


def test_arcface_moves_the_angle_of_the_own_class():
    given = outputs()
    angles = given[:, :3].acos()
    angles[range(4), LABELS] += 0.5
    expected = F.cross_entropy(64 * angles.cos(), LABELS, reduction='none')
    found = Loss(dict(type='ArcFaceLoss'), EMBEDDING)(given, LABELS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_contrastive_loss_pulls_the_same_class():
    given = outputs()
    near = (given[:, 3:] @ given[:, 3:].T / 0.2).exp()
    first = -(near[0, 1] / (near[0, 1] + near[0, 2] + near[0, 3])).log()
    second = -(near[1, 0] / (near[1, 0] + near[1, 2] + near[1, 3])).log()
    found = Loss(dict(type='SupervisedContrastiveLoss', temperature=0.2), EMBEDDING)(given, LABELS)
    torch.testing.assert_close(found, torch.stack([first, second, 0 * first, 0 * first]))


def test_proxy_anchor():
    given = outputs()
    s, own = given[:, :3], F.one_hot(LABELS, 3).bool()
    pulled = [(1 + (-32 * (s[own[:, k], k] - 0.1)).exp().sum()).log() for k in range(3)]
    pushed = [(1 + (32 * (s[~own[:, k], k] + 0.1)).exp().sum()).log() for k in range(3)]
    expected = sum(pulled) / 3 + sum(pushed) / 3
    found = Loss(dict(type='ProxyAnchorLoss'), EMBEDDING)(given, LABELS)
    torch.testing.assert_close(found, expected.expand(4))


def test_metrics_by_hand():
    angles = np.deg2rad([0, 10, 100, 12, 105, 200])
    vectors, labels = np.stack([np.cos(angles), np.sin(angles)], 1), np.array([0, 0, 1, 1, 0, 2])
    found = compute_metrics(['recall_at_1', 'recall_at_5', 'map_at_r'], vectors, labels, EMBEDDING)
    # the nearest of 0, 1, 2, 3, 4 are 1, 3, 4, 1, 2; the image of class 2 is alone
    assert found['recall_at_1'] == pytest.approx(1 / 5) and found['recall_at_5'] == 1
    found.update(compute_metrics(['recall_at_2', 'recall_at_4', 'knn_accuracy'], vectors, labels, EMBEDDING))
    # the second nearest of 1 and of 2, which are 0 and 3, are hits too
    assert found['recall_at_2'] == pytest.approx(3 / 5) and found['recall_at_4'] == 1
    assert found['knn_accuracy'] == pytest.approx(
        np.mean(
            [
                votes(vectors[[i]], np.delete(vectors, i, 0), np.delete(labels, i), 3).argmax() == labels[i]
                for i in range(5)
            ]
        )
    )
    # R is 2 for class 0: image 0 sees 1 (hit), 3; image 1 sees 3, 0 (hit at 2); image 4 sees 2, 3
    assert found['map_at_r'] == pytest.approx((1 / 2 + 1 / 4 + 0 + 0 + 0) / 5)
    alone = compute_metrics(
        ['recall_at_1', 'map_at_r', 'knn_accuracy'], vectors[:3], np.array([0, 1, 2]), EMBEDDING
    )
    assert np.isnan(list(alone.values())).all()


def test_recall_counts_the_k_nearest_others():
    random = np.random.default_rng(0)
    angles = random.uniform(0, 2, 40)
    labels = random.permutation(np.arange(40) % 10)  # each image has three others of its class
    ranks = []
    for i in range(40):
        others = sorted(set(range(40)) - {i}, key=lambda j: abs(angles[i] - angles[j]))
        ranks.append(labels[others].tolist().index(labels[i]) + 1)  # of the nearest hit
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    names = {k: f'recall_at_{k}' for k in (1, 2, 4, 5, 8, 10)}
    found = compute_metrics(list(names.values()), vectors, labels, EMBEDDING)
    by_hand = {k: np.mean(np.array(ranks) <= k) for k in names}
    assert {k: found[name] for k, name in names.items()} == pytest.approx(by_hand)
    assert len(set(by_hand.values())) == len(names)


def test_votes_weigh_by_nearness():
    gallery = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    found = votes(np.array([[0.9, 0.1], [0.5, 0.5]]), gallery, np.array([0, 1, 1]), classes=2, k=3)
    assert found.argmax(1).tolist() == [0, 1]
    assert found[1, 1] == pytest.approx(2 * found[1, 0])
    assert nearest(np.array([[3.0, 1.0]]), gallery, 9)[0].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize('loss', ['SupervisedContrastiveLoss', 'ProxyAnchorLoss'])
def test_other_losses_train(tmp_path, loss):
    summary = small(tmp_path / 'run', **HEAD, **{'train.loss': dict(type=loss)}).train()
    assert summary['recall_at_1'] > 0.5


def test_a_run_from_the_config_to_the_pipeline(run):
    trainer, summary = run
    assert summary['map_at_r'] > summary['before']['map_at_r']
    images = [SmallDigits('test')[i][0] for i in range(6)]
    find = pipeline(model=trainer.folder.output, device='cpu')
    answers = find(images)
    assert np.linalg.norm(answers[0]['vector']) == pytest.approx(1, abs=1e-5)
    assert len(answers[0]['vector']) == 16 and answers == trainer.predict(images)
    one = find.nearest(images[2], images, k=2)
    assert one['indices'][0] == 2 and one['scores'][0] == pytest.approx(1, abs=1e-4)
    assert find.nearest(images, answers, k=2)[2]['indices'] == one['indices']
    assert 'report' in (trainer.folder.path / 'report.html').read_text()
    assert 'image-feature-extraction' in model_card(trainer.folder.output)
    with pytest.raises(UserError, match='the model gives vectors, which have no score'):
        find(images, threshold=0.5)
    with pytest.raises(UserError, match='gallery must be a list'):
        find.nearest(images, [])
    assert find.nearest([], answers) == []
    for vector in ([1.0, 2.0], [float('nan')] * 16, ['a'] * 16, [[1.0] * 16], None):
        with pytest.raises(UserError, match=r'gallery\[1\] has the vector .* have 16 finite numbers'):
            find.nearest(images, [answers[0], dict(vector=vector)])


@pytest.mark.slow
def test_an_exported_graph_gives_the_vectors(run, tmp_path):
    trainer, _ = run
    done = export(trainer.folder.output, tmp_path / 'model.pt2', 'torch-export')
    network = torch.export.load(done.path).module()
    size = trainer.model.backbone.preprocessing.size
    assert network(torch.zeros(2, 3, *size)).shape == (2, 16)


@pytest.mark.slow
@pytest.mark.parametrize('options', [HEAD, {}])
def test_neighbours_on_the_command_line(tmp_path, options, monkeypatch, capsys):
    build(tmp_path / 'run', **options, **{'train.max_epochs': 1}).train()
    capsys.readouterr()
    monkeypatch.setattr('sys.argv', ['vet', 'test', str(tmp_path / 'run'), '--device', 'cpu', '--knn'])
    main()
    assert json.loads(capsys.readouterr().out)['knn'] > 0.6
    for wrong in (['--knn', '0'], ['--knn', '--split', 'train']):
        monkeypatch.setattr('sys.argv', ['vet', 'test', str(tmp_path / 'run'), *wrong])
        with pytest.raises(SystemExit):
            main()
        assert 'a training image would find itself' in capsys.readouterr().err


def test_neighbours_need_one_class(tmp_path):
    trainer = trainer_of(tmp_path / 'run', Measured)
    data = trainer.data['train']
    with pytest.raises(UserError, match="vote for one class, but .*'Regression' is numbers. Leave --knn out"):
        knn_accuracy(
            trainer.model, data, data, trainer._view, trainer.accelerator, trainer.settings.evaluation, 5
        )


def test_refusals(tmp_path):
    entry = {'model.objective': dict(type='Embedding')}
    with pytest.raises(UserError, match=r"the head 'Linear' gives no vectors.*dict\(type='Embedding'\)"):
        small(tmp_path / 'run', **entry)
    with pytest.raises(UserError, match="the head 'Embedding' is for targets that are a class of images"):
        trainer_of(tmp_path / 'run', Measured, **{'model.head': dict(type='Embedding')})
    with pytest.raises(UserError, match='Losses for such targets: ArcFaceLoss'):
        small(tmp_path / 'run', **HEAD, **{'train.loss': dict(type='CrossEntropyLoss')}).train()
    trainer = small(tmp_path / 'plain', **{'train.max_epochs': 0})
    trainer.train()
    with pytest.raises(UserError, match="nearest compares vectors, but the objective .*'SingleLabel'"):
        pipeline(model=trainer.folder.output, device='cpu').nearest([], [])


def test_the_count_of_the_head():
    head = HEADS.build(dict(type='Embedding', size=7, num_classes=3), in_features=5)
    assert sum(p.numel() for p in head.parameters()) == 5 * 7 + 3 * 7
