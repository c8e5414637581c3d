"""vet tune --launcher ray, on a local cluster: trials run at once, a lost trial ends nothing, and a killed
search goes on.
"""

import itertools
import json
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from tests.conftest import ROOT
from vet.errors import UserError
from vet.search.ray import run_on_ray
from vet.search.tuning import Options, tune


@pytest.fixture
def config(tmp_path):
    file = tmp_path / 'digits.json'
    loader = dict(workers_per_gpu=0, batch_size_per_gpu=128)
    file.write_text(
        json.dumps(
            dict(
                model=dict(backbone=dict(type='DigitsViT', lora_length=2)),
                dataset={split: dict(type='Digits', split=split) for split in ('train', 'test')},
                train=dict(max_epochs=3, threads=1, optimizer=dict(lr=1e-3), dataloader=loader),
                evaluation=dict(dataloader=loader, select='best'),
            )
        )
    )
    return str(file)


@pytest.fixture(scope='module')
def cluster():
    import ray

    ray.init(
        address='local',
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env=dict(env_vars=dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')),
    )
    yield ray
    ray.shutdown()


def trials(run):
    storage = JournalStorage(JournalFileBackend(str(run / 'search.log')))
    return optuna.load_study(study_name='vet tune', storage=storage).trials


def test_ray_that_is_not_installed_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(
        UserError, match=r'--launcher ray needs Ray.*pip install "vision-efficient-tuning\[ray\]"'
    ):
        run_on_ray(None, 1.0)


@pytest.mark.slow
def test_trials_run_at_once_and_the_search_goes_on_without_ray(cluster, config, tmp_path, capfd):
    options = Options(minutes=0.6, device='cpu', tuners=('LoRA', 'LinearProbe', 'BitFit'), launcher='ray')
    found = tune(config, tmp_path / 'run', options)
    assert found.winner.is_whole and len(found.tried) > 1
    assert 'trial 0: LoRA(rank=2), learning rate 0.001: ' in capfd.readouterr().err
    ran = [trial for trial in trials(tmp_path / 'run') if trial.state.is_finished()]
    assert any(later.datetime_start < one.datetime_complete for one, later in itertools.pairwise(ran))
    assert found.winner.value == max(each.value for each in found.tried if each.is_whole)
    more = tune(config, tmp_path / 'run', Options(**vars(options) | dict(launcher='local')))
    assert set(found.tried) <= set(more.tried)


DIES = """import os
from vet.hooks.base import Hook
from vet.registry import HOOKS

@HOOKS.register_module()
class DiesOnce(Hook):
    def after_train_epoch(self, runner):
        if 'trials' in os.fspath(runner.work_dir):
            try:
                os.mkdir({mark!r})
            except FileExistsError:
                return
            os._exit(9)
"""


@pytest.mark.slow
def test_a_lost_trial_is_tried_once_more(cluster, config, tmp_path, capfd):
    (tmp_path / 'dies.py').write_text(DIES.format(mark=str(tmp_path / 'died')))
    changed = json.loads(Path(config).read_text())
    changed |= dict(custom_imports=dict(imports=['dies']), custom_hooks=[dict(type='DiesOnce')])
    Path(config).write_text(json.dumps(changed))
    options = Options(minutes=0.1, device='cpu', tuners=('LinearProbe',), launcher='ray')
    found = tune(config, tmp_path / 'run', options)
    assert ' is lost: WorkerCrashedError' in ' '.join(capfd.readouterr().err.split())
    assert found.winner.is_whole
    ran = trials(tmp_path / 'run')
    [lost] = [trial for trial in ran if trial.state == TrialState.FAIL]
    [again] = [trial for trial in ran if 'lost' in trial.user_attrs]
    assert again.system_attrs['fixed_params'] == lost.params
