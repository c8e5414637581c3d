"""Local, Ray and Slurm: where jobs run, what a process that dies leaves, and what is written for a
cluster.
"""

import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.benchmark.conftest import TWO_SEEDS
from tests.benchmark.runs import campaign, lasting, results
from tests.conftest import ROOT
from vet.benchmark import local, slurm
from vet.benchmark.local import Local
from vet.benchmark.ray import Ray
from vet.benchmark.slurm import Slurm
from vet.cli.benchmark import LAUNCHERS
from vet.errors import UserError

PLUGIN = """
import os, signal, time
from vet.datasets.digits import Digits
from vet.registry import DATASETS

@DATASETS.register_module(force=True)
class {name}(Digits):
    def __getitem__(self, index):
        {does}
        return super().__getitem__(index)
"""
RUN_LOCAL = """
import sys
from pathlib import Path
from tests.benchmark.runs import campaign
from vet.benchmark.local import Local
campaign(Path(sys.argv[1]), Local(int(sys.argv[2])), {more!r}).run()
"""
WAIT_AT_WRITE = """
import sys
if any('vet.benchmark.worker' in argument for argument in sys.orig_argv):
    from tests.benchmark.at_write import at_write, wait_for_ever
    at_write({folder!r}, {moment}, lambda: wait_for_ever({mark!r}))
"""


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))


def with_plugin(folder, name, does):
    """More of a suite: a dataset of a plugin beside the suite's file."""
    (folder / f'plugin_{name.lower()}.py').write_text(PLUGIN.format(name=name, does=does))
    return (
        f"custom_imports = dict(imports=['plugin_{name.lower()}'])\n"
        f"datasets['{name}'] = {{split: dict(few[split], type='{name}') for split in few}}\n"
    )


def statuses(folder):
    return {name: result['status'] for name, result in results(folder).items()}


def note(at_once, path, environment):
    """In place of a run: writes the environment and how many run at once, and waits for the others."""
    own = Path(path).parent
    (own / 'runs').touch()
    seen = [environment.get('CUDA_VISIBLE_DEVICES'), environment.get('OMP_NUM_THREADS')]
    (own / 'seen').write_text(' '.join(map(str, [*seen, len(list(own.parent.glob('*/runs')))])))
    until = time.monotonic() + 100  # where fewer run at once
    while len(list(own.parent.glob('*/seen'))) < at_once and time.monotonic() < until:
        time.sleep(0.01)
    (own / 'runs').unlink()


def seen(monkeypatch, folder, jobs, gpus, seeds):
    """(GPU, threads) of the environment of each run, in the order of the seeds. So many runs are made at once
    as there is room for."""
    at_once = min(seeds, jobs * max(1, len(gpus)))
    monkeypatch.setattr(local, 'work_apart', partial(note, at_once))
    campaign(folder, Local(jobs, gpus), f'seeds = list(range({seeds}))', only='*.linear').run()
    found = [path.read_text().split() for path in sorted(folder.rglob('seen'))]
    assert max(int(count) for _, _, count in found) == at_once
    return [(gpu, threads) for gpu, threads, _ in found]


def test_each_gpu_gets_as_many_runs_at_once_as_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    found = [gpu for gpu, _ in seen(monkeypatch, tmp_path, 2, [1, 3], 5)]
    # the fifth takes the place that is free first
    assert found[:4] == ['1', '3', '1', '3'] and found[4] in ('1', '3')


def test_gpus_are_counted_among_those_that_are_visible(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,GPU-7f')
    assert [gpu for gpu, _ in seen(monkeypatch, tmp_path, 1, [0, 1], 2)] == ['5', 'GPU-7f']


def test_runs_on_the_cpu_share_its_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(os, 'cpu_count', lambda: 8)
    assert [threads for _, threads in seen(monkeypatch, tmp_path, 3, [], 2)] == ['2', '2']


def test_gpus_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match="--gpus '0,one' has 'one'; give the numbers of GPUs, such as 0,1"):
        LAUNCHERS['local'](Namespace(gpus='0,one', jobs=1, device=None))


@pytest.mark.parametrize('gpus', ['', ' ', ','])
def test_no_gpu_is_not_taken_for_all_of_them(gpus):
    with pytest.raises(
        UserError, match='names no GPU; give numbers, such as 0,1, or for the CPU --device cpu'
    ):
        LAUNCHERS['local'](Namespace(gpus=gpus, jobs=1, device=None))


@pytest.mark.parametrize(
    'jobs, gpus, text',
    [
        (0, [], '--jobs is 0; it must be at least 1'),
        (1, [0, 2], '--gpus has 2, but there are 2 GPUs, numbered from 0'),
    ],
)
def test_wrong_numbers_are_refused(monkeypatch, jobs, gpus, text):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    with pytest.raises(UserError, match=text):
        Local(jobs, gpus)


@pytest.mark.slow
def test_a_killed_worker_is_recorded_and_the_others_go_on(tmp_path):
    more = with_plugin(tmp_path, 'Deadly', 'os.kill(os.getpid(), signal.SIGKILL)')
    campaign(tmp_path, Local(2), more, only='*.linear').run()
    assert statuses(tmp_path) == {'few.vit.linear.seed0': 'done', 'Deadly.vit.linear.seed0': 'failed'}
    assert results(tmp_path)['Deadly.vit.linear.seed0']['error'].startswith(
        'the process ended (killed by signal 9)'
    )


@pytest.mark.slow
def test_a_worker_ends_with_its_campaign(tmp_path):
    mark = tmp_path / 'began'
    does = f"open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(1000)"
    more = with_plugin(tmp_path, 'Endless', does)
    campaign = subprocess.Popen([sys.executable, '-c', RUN_LOCAL.format(more=more), tmp_path, '1'], cwd=ROOT)
    while not mark.exists() or not mark.read_text():
        assert campaign.poll() is None
        time.sleep(0.1)
    campaign.kill()
    while Path('/proc', mark.read_text()).exists():
        time.sleep(0.1)


@pytest.mark.slow
def test_ctrl_c_lets_each_run_save_itself(tmp_path):
    """The terminal sends SIGINT to the whole group. The run gets one signal, and is saved after its step."""
    does = (
        'self.calls = getattr(self, "calls", 0) + 1\n'
        '        if self.calls == 80:\n'  # in the second step
        '            stop = signal.getsignal(signal.SIGTERM).__self__\n'
        '            campaign = __import__("multiprocessing").parent_process().pid\n'
        '            os.killpg(os.getpgid(campaign), signal.SIGINT)\n'
        '            while stop.number != signal.SIGTERM: time.sleep(0.01)'
    )
    more = with_plugin(tmp_path, 'Stopping', does) + "del datasets['few'], tuners['bias']\n"
    campaign = subprocess.Popen(
        [sys.executable, '-c', RUN_LOCAL.format(more=more), tmp_path, '1'],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _, err = campaign.communicate(timeout=200)
    assert campaign.returncode == -signal.SIGINT, err
    [checkpoint] = tmp_path.glob('work/tiny/*/run/checkpoints/step-*')
    assert int(checkpoint.name[5:]) < 4  # before the end of the epoch


@pytest.mark.slow
def test_runs_share_a_start_and_nothing_else(tmp_path):
    """Each run has a process of its own, with as many threads as its place has cores."""
    does = (
        "print('ran in', os.getpid(), __import__('torch').get_num_threads(), os.environ['OMP_NUM_THREADS'])"
    )
    more = with_plugin(tmp_path, 'Talking', does) + "train['threads'] = None\n"
    campaign(tmp_path, Local(1), more + 'seeds = [0, 1]', only='Talking.*linear').run()
    said = [set(path.read_text().splitlines()) for path in sorted(tmp_path.rglob('worker.log'))]
    lines = [[line.split()[2:] for line in of_run if line.startswith('ran in')] for of_run in said]
    cores = str(os.cpu_count())
    assert [[threads, variable] for [[_, threads, variable]] in lines] == [[cores, cores]] * 2
    assert lines[0][0][0] != lines[1][0][0]
    assert set(statuses(tmp_path).values()) == {'done'}


@pytest.mark.slow
@pytest.mark.parametrize('moments', [(3, 20), (12, 30)])
def test_a_campaign_killed_with_its_workers_at_work_ends_as_one_that_was_not(tmp_path, unbroken, moments):
    """moments: the writes at which each worker stops and waits, until the campaign is killed."""
    folder, hooks, kept = tmp_path / 'campaign', tmp_path / 'hooks', {}
    hooks.mkdir()
    command = [sys.executable, '-c', RUN_LOCAL.format(more=TWO_SEEDS), folder, '2']
    environment = os.environ | dict(PYTHONPATH=f'{hooks}:{ROOT}')
    for moment in moments:
        mark = tmp_path / f'waits at {moment}'
        (hooks / 'sitecustomize.py').write_text(
            WAIT_AT_WRITE.format(folder=str(folder), moment=moment, mark=str(mark))
        )
        parent = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=environment)
        while not mark.exists():
            assert parent.poll() is None
            time.sleep(0.05)
        parent.kill()
        assert parent.wait() == -signal.SIGKILL
        kept |= {path: path.stat().st_mtime_ns for path in (folder / 'results/tiny').glob('*.json')}
    subprocess.run(command, cwd=ROOT, check=True)
    assert {name: lasting(result) for name, result in results(folder).items()} == {
        name: lasting(result) for name, result in results(unbroken).items()
    }
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_ray_that_is_not_installed_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(
        UserError,
        match=r'--launcher ray needs Ray, which is not installed: pip install "vision-efficient-tuning\[ray\]"',
    ):
        Ray()


@pytest.mark.slow
def test_ray_makes_the_same_results_and_records_lost_tasks(tmp_path, unbroken):
    more = with_plugin(tmp_path, 'Lost', 'os.kill(os.getpid(), signal.SIGKILL)') + TWO_SEEDS
    launch = Ray(dict(num_cpus=1))
    launch.ray.init(
        address='local',  # not the cluster of another test
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env=dict(env_vars=dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')),
    )
    try:
        campaign(tmp_path, launch, more).run()
    finally:
        launch.ray.shutdown()
    found = results(tmp_path)
    lost = {name: result for name, result in found.items() if name.startswith('Lost')}
    assert [result['status'] for result in lost.values()] == ['failed'] * 4
    assert all('WorkerCrashed' in result['error'] for result in lost.values())
    assert {name: result['metrics'] for name, result in found.items() if name not in lost} == {
        name: result['metrics'] for name, result in results(unbroken).items()
    }


def test_slurm_writes_an_array_and_starts_nothing(tmp_path, capsys):
    grid = "grid = {'train.optimizer.lr': [1e-3, 1e-2]}\nseeds = [0, 1]\n"
    made = campaign(
        tmp_path, Slurm(tmp_path / 'work', dict(gpus=1, time='4:00:00', array='0-1%1')), grid, only='*.linear'
    )
    assert made.run() == [] and results(tmp_path) == {}
    [script] = (tmp_path / 'work').glob('*.sh')
    said = ' '.join(capsys.readouterr().out.split())
    assert (
        f'2 jobs are written, and none is started: sbatch {script}' in said
        and '2 of them are searches' in said
    )
    lines = script.read_text().splitlines()
    assert lines[0] == '#!/bin/bash'
    assert {
        '#SBATCH --array=0-1%1',
        '#SBATCH --gpus=1',
        '#SBATCH --time=4:00:00',
        '#SBATCH --job-name=vet',
    } <= set(lines)
    jobs = script.with_suffix('.txt').read_text().splitlines()
    assert len(jobs) == 2 and all(Path(job).name == 'job.json' and Path(job).is_file() for job in jobs)


def test_more_jobs_than_an_array_holds_are_several(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(slurm, 'MOST', 2)
    folder = tmp_path / 'two words'
    made = campaign(tmp_path, Slurm(folder), 'seeds = [0, 1, 2]', only='*.linear', work_dir='two words')
    made.run()
    scripts = sorted(folder.glob('*.sh'), key=lambda path: path.read_text().count('--array=0-0'))
    assert [
        '#SBATCH --array=0-1' in scripts[0].read_text(),
        '#SBATCH --array=0-0' in scripts[1].read_text(),
    ] == [True, True]
    assert sorted(
        job for script in scripts for job in script.with_suffix('.txt').read_text().splitlines()
    ) == sorted(str(path) for path in folder.rglob('job.json'))
    assert f"#SBATCH --output='{folder}/{scripts[0].stem}-%a.log'" in scripts[0].read_text()
    said = ' '.join(capsys.readouterr().out.split())
    assert all(f"sbatch '{script}'" in said for script in scripts)


@pytest.mark.slow
def test_an_element_of_the_array_is_one_job(tmp_path):
    folder = tmp_path / "it's a folder"
    made = campaign(folder, Slurm(folder / 'work'), TWO_SEEDS, only='*.linear')
    made.run()
    [script] = (folder / 'work').glob('*.sh')
    assert '#SBATCH --array=0-1' in script.read_text().splitlines()
    subprocess.run(
        ['bash', script],
        env={**os.environ, 'SLURM_ARRAY_TASK_ID': '1'},
        check=True,
        capture_output=True,
        cwd=tmp_path,
    )
    assert statuses(folder) == {'few.vit.linear.seed1': 'done'}
