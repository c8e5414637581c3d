"""train.trackers with the real mlflow and a store in a local folder."""

import shutil

import pytest

from tests.engine.runs import ended, small
from tests.engine.test_hooks import hook  # noqa: F401, a fixture
from vet.engine.learner import Learner
from vet.engine.saving.log import read_log
from vet.errors import UserError


@pytest.fixture
def store(tmp_path, monkeypatch):
    """mlflow's runs in a folder: {run id: (parameters, metrics)} when called."""
    import mlflow

    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    path = tmp_path / 'mlruns'
    mlflow.set_tracking_uri(path.as_uri())
    client = mlflow.MlflowClient()

    def runs():
        experiment = client.get_experiment_by_name('vet')
        found = client.search_runs([experiment.experiment_id])
        return {run.info.run_id: run for run in found}

    runs.path = path
    runs.history = lambda run, name: [
        (point.step, point.value) for point in client.get_metric_history(run, name)
    ]
    return runs


OPTIONS = {'train.trackers': ['mlflow'], 'train.log_every': 1, 'train.checkpoint.every_steps': 1}


def test_config_and_numbers_are_in_mlflow_in_one_run_after_a_break(store, tmp_path, monkeypatch):
    step = Learner.step

    def broken(self, batches, number, meter):
        if number == 5:
            raise ZeroDivisionError
        return step(self, batches, number, meter)

    with monkeypatch.context() as context, pytest.raises(ZeroDivisionError):
        context.setattr(Learner, 'step', broken)
        small(tmp_path / 'run', **OPTIONS).train()
    trainer = small(tmp_path / 'run', 'auto', **OPTIONS | {'train.log_every': 2})  # a free setting
    with_tracker = ended(trainer)
    [(run, found)] = store().items()
    assert found.data.params['train.optimizer.lr'] == '0.005' and found.info.status == 'FINISHED'
    assert found.data.params['model.tuners'] == "[{'type': 'LoRA', 'rank': 4}]"
    written = [(line['step'], line['loss']) for line in read_log(trainer.folder.path) if 'loss' in line]
    history = dict(store.history(run, 'loss'))
    assert all(history[number] == loss for number, loss in written) and len(history) == 8
    assert found.data.metrics['test_accuracy'] == with_tracker['accuracy']
    without = ended(small(tmp_path / 'without', **{'train.log_every': 1}))
    assert without['tensors'] == with_tracker['tensors']


def test_a_tracker_that_fails_later_is_named_and_left_out(store, tmp_path, hook, capfd):  # noqa: F811
    class Breaks:
        def after_train_iter(self, runner):
            if runner.iter == 2:
                shutil.rmtree(store.path)
                store.path.write_text('no folder')

    summary = small(tmp_path / 'run', **OPTIONS, **hook(Breaks)).train()
    said = ' '.join(capfd.readouterr().err.split())
    assert said.count("the tracker 'mlflow' fails at step") == 1 and 'continues without the tracker' in said
    assert summary['steps'] == 8


def test_a_tracker_that_cannot_begin_is_refused(store, tmp_path):
    shutil.rmtree(store.path)
    store.path.write_text('no folder')
    with pytest.raises(UserError, match="the tracker 'mlflow' cannot begin.*take the tracker out"):
        small(tmp_path / 'run', **OPTIONS).train()


def test_a_tracker_that_is_named_twice_begins_once(store, tmp_path):
    small(
        tmp_path / 'run', **OPTIONS | {'train.trackers': ['mlflow', 'mlflow'], 'train.max_epochs': 1}
    ).train()
    assert len(store()) == 1


def test_after_a_tracker_that_cannot_begin_another_run_can(store, tmp_path, monkeypatch):
    def refused(*_):
        raise RuntimeError('the disk is full')

    with monkeypatch.context() as context, pytest.raises(UserError, match="'tensorboard' cannot begin"):
        context.setattr('accelerate.tracking.TensorBoardTracker.start', refused)
        small(tmp_path / 'one', **OPTIONS | {'train.trackers': ['mlflow', 'tensorboard']}).train()
    small(tmp_path / 'two', **OPTIONS | {'train.max_epochs': 1}).train()
    assert [run.info.status for run in store().values()] == ['FINISHED', 'FINISHED']


def test_unknown_and_missing_trackers_are_refused(tmp_path):
    with pytest.raises(UserError, match='train.trackers'):
        small(tmp_path / 'run', **{'train.trackers': ['mlfow']})
    with pytest.raises(UserError, match="names 'aim', but the package aim is not installed here.*mlflow"):
        small(tmp_path / 'run', **{'train.trackers': ['aim']}).train()
    with pytest.raises(UserError, match="names 'comet', but the package comet_ml is not installed here"):
        small(tmp_path / 'comet', **{'train.trackers': ['comet']}).train()
