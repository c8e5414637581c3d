"""Objectives in tasks, on the command line, in exports and on cards; plugins of a user."""

import json

import numpy as np
import pytest
import torch

from tests.engine.runs import SmallDigits, config, small
from tests.objectives.conftest import TAGS, Measured, Tagged, trainer_of
from vet import build_trainer
from vet.cli.answers import write_answers
from vet.cli.vet import main
from vet.core.objective import Objective, build_objective
from vet.datasets.multitask import MultiTask
from vet.errors import UserError
from vet.hub.card import model_card
from vet.hub.export import export
from vet.hub.model_folder import load_model
from vet.objectives.single_label import SingleLabel
from vet.pipelines import pipeline
from vet.registry import LOSSES, METRICS, OBJECTIVES


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """{name: the model folder of a short run}."""
    made = {}
    for kind in (Tagged, Measured):
        trainer = trainer_of(tmp_path_factory.mktemp(kind.__name__), kind, **{'train.max_epochs': 1})
        trainer.train()
        made[kind.__name__] = trainer.folder.output
    return made


def test_tasks_of_three_objectives(tmp_path):
    def data(split):
        return MultiTask(dict(digit=SmallDigits(split), tags=Tagged(split), worth=Measured(split)))

    made = config(**{'train.max_epochs': 1})
    trainer = build_trainer(
        model=made, work_dir=tmp_path, train_dataset=data('train'), eval_dataset=data('test'), device='cpu'
    )
    summary = trainer.train()
    assert {'digit/accuracy', 'tags/mAP', 'worth/mae'} <= set(summary) and 'accuracy' not in summary
    lines = [json.loads(line) for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
    assert all('loss' in line and 'accuracy' not in line for line in lines if 'lr' in line)
    classify, image = pipeline(model=tmp_path, device='cpu'), SmallDigits('test')[0][0]
    assert len(classify(image, task='digit')['labels']) == 5
    assert set(classify(image, task='worth')) == {'worth', 'share'}
    assert set(classify(image, task='tags')['labels']) <= set(TAGS)


@pytest.mark.parametrize('name, words', [('Tagged', 'odd|loop|large|{'), ('Measured', 'EUR')])
def test_predict_prints_the_answer(folders, tables, monkeypatch, capsys, name, words):
    monkeypatch.chdir(tables)  # a table wraps a long path
    monkeypatch.setattr('sys.argv', ['vet', 'predict', str(folders[name]), 'test-0.png'])
    main()
    shown = capsys.readouterr().out
    assert 'test-0.png' in shown
    if name == 'Measured':
        assert words in shown and 'worth' in shown and 'share' in shown


@pytest.mark.parametrize('name, columns', [('Tagged', 'label,score'), ('Measured', 'worth,share')])
def test_predict_writes_a_csv(folders, tables, monkeypatch, capsys, name, columns):
    monkeypatch.chdir(tables)
    monkeypatch.setattr('sys.argv', ['vet', 'predict', str(folders[name]), 'test-0.png', '--format', 'csv'])
    main()
    header, row = capsys.readouterr().out.splitlines()
    assert header == f'image,{columns},error' and row.startswith('test-0.png,') and row.endswith(',')


def test_a_threshold_for_other_objectives(folders, tables):
    image = str(tables / 'test-0.png')
    with pytest.raises(UserError, match='numbers, which have no score'):
        pipeline(model=folders['Measured'], device='cpu')(image, threshold=0.5)
    classify = pipeline(model=folders['Tagged'], device='cpu')
    classify.model.objective.thresholds = [0.0] * len(classify.classes)
    every = classify(image)
    kept = classify(image, threshold=every['scores'][1])
    assert kept == {key: values[:2] for key, values in every.items()}
    assert classify(image, threshold=1.0) == dict(labels=['unsure'], scores=every['scores'][:1])


@pytest.mark.parametrize(
    'name, words', [('Tagged', 'a multi-label image'), ('Measured', 'estimates numbers')]
)
def test_the_card_says_the_objective(folders, name, words):
    card = model_card(folders[name])
    assert words in card and ('MultiLabel(' in card) == (name == 'Tagged')
    assert ('pipeline_tag: image-classification' in card) == (name == 'Tagged')


@pytest.mark.parametrize('name', ['Measured', pytest.param('Tagged', marks=pytest.mark.slow)])
def test_an_exported_graph_gives_the_models_outputs(folders, tmp_path, name):
    done = export(folders[name], tmp_path / 'model.pt2', 'torch-export')
    files = {'vet.json': ''}
    network = torch.export.load(done.path, extra_files=files).module()
    model = load_model(folders[name])
    about = json.loads(files['vet.json'])
    assert about['objective'] == model.objective.entry() and about['classes'] == model.classes
    images = torch.zeros(2, 3, *model.backbone.preprocessing.size)
    with torch.no_grad():
        torch.testing.assert_close(network(images), model(images), rtol=1e-5, atol=1e-4)
        if name == 'Measured':
            assert 1.9e6 < network(images)[0, 0] < 2.2e6


def test_a_folder_may_not_say_what_the_objective_does_not_permit(folders, tmp_path):
    configuration = json.loads((folders['Tagged'] / 'configuration.json').read_text())
    for wrong in (dict(type='MultiLabel', thresholds=['x']), dict(type='MultiLabel', names=['/etc'])):
        configuration['model']['objective'] = wrong
        (tmp_path / 'configuration.json').write_text(json.dumps(configuration))
        with pytest.raises(UserError, match='model.objective'):
            load_model(tmp_path)


class Margin:
    targets = 'one class'

    def __call__(self, outputs, targets):
        return torch.nn.functional.multi_margin_loss(outputs, targets, reduction='none')


class Halves(SingleLabel):
    """The user's own objective: whether a label is in the first or the second half of the classes."""

    about = 'a model of halves'

    def answers(self, outputs, topk, usual):
        return [dict(scores=[1.0], labels=['late' if int(row.argmax()) > 1 else 'early']) for row in outputs]


def errors(scores, labels):
    return float((scores.argmax(1) != labels).sum())


errors.lower_is_better = True


def seen_by_objective(scores, labels, objective):
    return {name: float(np.mean(labels == k)) for k, name in enumerate(objective.names)}


def test_plugins_of_a_user(tmp_path, monkeypatch):
    monkeypatch.setitem(LOSSES.module_dict, 'Margin', Margin)
    monkeypatch.setitem(OBJECTIVES.module_dict, 'Halves', Halves)
    for metric in (errors, seen_by_objective):
        monkeypatch.setitem(METRICS.module_dict, metric.__name__, metric)
    options = {
        'model.objective': dict(type='Halves'),
        'train.loss': dict(type='Margin'),
        'evaluation.metrics': ['errors', 'seen_by_objective', 'accuracy'],
        'evaluation.select': 'best',
        'train.max_epochs': 2,
    }
    trainer = small(tmp_path / 'run', **options)
    summary = trainer.train()
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'log.jsonl').read_text().splitlines()]
    assert summary['validation'] == min(line['val_errors'] for line in lines if 'val_errors' in line)
    assert summary['seen_by_objective.5'] == pytest.approx(
        np.mean(np.array(trainer.data['test'].targets) == 0)
    )
    answer = pipeline(model=trainer.folder.output, device='cpu')(trainer.data['test'][0][0])
    assert answer['labels'] in (['late'], ['early'])


class Depth(SingleLabel):
    """The user's own objective, whose answers have other keys than labels and scores."""

    def answers(self, outputs, topk, usual):
        return [dict(depth=int(row.argmax()), unit='cm') for row in outputs]


def test_answers_of_other_keys_are_shown():
    objective = Depth(['a', 'b'])
    [answer] = objective.answers(torch.tensor([[0.0, 1.0]]), None, 1)
    rows = [('photo.jpg', answer)]
    table = ''.join(write_answers(rows, 'table', ['photo.jpg'], objective))
    assert 'photo.jpg  depth   1' in table and 'unit    cm' in table
    assert 'photo.jpg,depth=1|unit=cm,,' in ''.join(write_answers(rows, 'csv', ['photo.jpg'], objective))
    assert objective.doubt(answer, 0.5) == answer


class NoObjective:
    def __init__(self, names):
        pass


def test_a_plugin_that_is_no_objective(tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES.module_dict, 'NoObjective', NoObjective)
    with pytest.raises(UserError, match='is a NoObjective; an objective is a subclass of'):
        small(tmp_path / 'run', **{'model.objective': dict(type='NoObjective')})
    assert issubclass(Halves, Objective)


def test_an_objective_that_lacks_methods_is_told(monkeypatch):
    monkeypatch.setitem(OBJECTIVES.module_dict, 'Sets', Sets)
    with pytest.raises(
        UserError,
        match="'Sets' lacks loss, metrics, check, watch, answers, examples. Write them in the class",
    ):
        build_objective(dict(type='Sets'), ['a', 'b'])


class Sets(Objective):
    """An objective of a user, which writes as little as possible: two answers for each image."""

    targets = 'a set of classes'

    def decide(self, scores):
        return (scores > 0.5).astype(int)


def test_an_image_with_one_wrong_answer_is_wrong():
    scores, targets = np.array([[0.9, 0.1], [0.9, 0.9], [0.1, 0.1]]), np.array([[1, 0], [1, 0], [1, 1]])
    assert Sets(['a', 'b']).wrongness(scores, targets).tolist() == [0.0, 1.0, 1.0]


def test_outputs_without_pixels_keep_their_size():
    outputs = torch.rand(2, 3)
    assert Sets(['a', 'b']).fitted(outputs, (8, 8)) is outputs
