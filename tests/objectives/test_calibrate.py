"""Temperature scaling: chosen on validation images, kept in the folder, used wherever there are scores."""

import json

import numpy as np
import pytest
import torch

from tests.engine.runs import SmallDigits, small
from tests.objectives.conftest import Measured, trainer_of
from vet.cli.vet import main
from vet.errors import UserError
from vet.hub.export import export
from vet.objectives.temperature import chosen_temperature
from vet.pipelines import pipeline
from vet.source import find_config

OPTIONS = {
    'evaluation.metrics': ['accuracy', 'ece'],
    'evaluation.select': 'best',
    'evaluation.holdout': 0.3,
    'train.max_epochs': 1,
    'model.head': dict(type='LDA'),
}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """The trainers and summaries of a run without, and of a run with a temperature."""
    folder, made = tmp_path_factory.mktemp('runs'), []
    for calibrate in (False, True):
        trainer = small(folder / str(calibrate), **OPTIONS, **{'evaluation.calibrate': calibrate})
        made.append((trainer, trainer.train()))
    return made


def test_the_least_likelihood_loss():
    draw = np.random.default_rng(0)
    logits = draw.standard_normal((4000, 5))
    shares = torch.tensor(logits).softmax(1).numpy()
    labels = np.array([draw.choice(5, p=row) for row in shares])
    found, errors = chosen_temperature(3 * logits, labels)
    assert found == pytest.approx(3, rel=0.1)
    assert errors['nll'][1] < errors['nll'][0] and errors['ece'][1] < errors['ece'][0]


def test_a_temperature_that_makes_the_calibration_error_worse_is_not_chosen():
    logits = np.array([[2.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    for labels in np.ndindex(2, 2, 2, 2):
        found, errors = chosen_temperature(logits, np.array(labels))
        assert all(after <= before for before, after in errors.values())
        assert found != 1 or errors['nll'][0] == errors['nll'][1]


def test_answers_stay_and_scores_change(runs):
    (plain, before), (trainer, after) = runs
    assert before['accuracy'] == after['accuracy'] and 'calibration' not in before
    found = after['calibration']
    assert found['temperature'] == trainer.model.objective.temperature != 1
    assert found['nll'][1] < found['nll'][0] and found['ece'][1] <= found['ece'][0]
    assert before['ece'] != after['ece']
    images = [SmallDigits('test')[i][0] for i in range(8)]
    cooled = pipeline(model=trainer.folder.output, device='cpu')(images)
    for one, other in zip(pipeline(model=plain.folder.output, device='cpu')(images), cooled):
        assert one['labels'] == other['labels']
        shares = (torch.tensor(one['scores']).log() / found['temperature']).softmax(0)
        torch.testing.assert_close(shares, torch.tensor(other['scores']), rtol=1e-4, atol=1e-5)


def test_the_folder_holds_the_temperature(runs, monkeypatch, capsys):
    trainer, summary = runs[1]
    entry = json.loads((trainer.folder.output / 'configuration.json').read_text())['model']['objective']
    assert entry == dict(type='SingleLabel', temperature=summary['calibration']['temperature'])
    again = small(trainer.folder.path, 'auto', **OPTIONS, **{'evaluation.calibrate': True})
    assert again.train()['ece'] == summary['ece'] == again.evaluate()['ece']
    assert find_config(trainer.folder.output)['model']['objective'] == dict(type='SingleLabel')


@pytest.mark.slow
def test_vet_test_measures_with_the_temperature(tmp_path, monkeypatch, capsys):
    options = {'evaluation.metrics': ['ece'], 'evaluation.select': 'best', 'evaluation.calibrate': True}
    from tests.engine.runs import build

    trainer = build(tmp_path / 'run', **options, **{'train.max_epochs': 0, 'model.head': dict(type='LDA')})
    summary = trainer.train()
    monkeypatch.setattr('sys.argv', ['vet', 'test', str(tmp_path / 'run'), '--device', 'cpu'])
    main()
    assert json.loads(capsys.readouterr().out) == dict(ece=pytest.approx(summary['ece'], rel=1e-4))


@pytest.mark.slow
def test_an_exported_graph_gives_logits_without_the_temperature(runs, tmp_path):
    trainer, summary = runs[1]
    done = export(trainer.folder.output, tmp_path / 'model.pt2', 'torch-export')
    files = {'vet.json': ''}
    torch.export.load(done.path, extra_files=files)
    temperature = summary['calibration']['temperature']
    assert json.loads(files['vet.json'])['objective'] == dict(type='SingleLabel', temperature=temperature)


def test_refusals(tmp_path):
    with pytest.raises(UserError, match='there are no validation images to choose a temperature on. Give'):
        small(tmp_path / 'run', **{'evaluation.calibrate': True}).train()
    with pytest.raises(
        UserError, match="evaluation.calibrate is True, but the objective 'Regression' has no"
    ):
        trainer_of(
            tmp_path / 'other', Measured, **{'evaluation.calibrate': True, 'evaluation.select': 'best'}
        ).train()
    assert not (tmp_path / 'run').exists() and not (tmp_path / 'other').exists()
