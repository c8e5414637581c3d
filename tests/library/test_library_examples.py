"""The examples of the library door run as they stand, with the real libraries and random weights."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vet

FOLDER = Path(__file__).parents[2] / 'examples' / 'library'
IN_PROCESS = [
    'plain_loop',
    'knn',
    pytest.param('timm_recipe', marks=pytest.mark.slow),
    pytest.param('lightning_fit', marks=pytest.mark.slow),
    pytest.param('hf_trainer', marks=pytest.mark.slow),
    pytest.param('compiled', marks=pytest.mark.slow),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder of an example, which may import the other examples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield tmp_path
    sys.modules.pop('plain_loop', None)


def as_saved(folder):
    """The logits of two images by the network of the examples, fresh and as the folder says."""
    import plain_loop

    images = plain_loop.digits().tensors[0][:2]
    fresh = plain_loop.network().eval()
    with torch.no_grad():
        return fresh(images), vet.load(folder, plain_loop.network()).eval()(images)


@pytest.mark.parametrize('name', IN_PROCESS)
def test_an_example_runs_and_saves_what_it_trained(name, here, capsys):
    torch.manual_seed(0)
    runpy.run_path(str(FOLDER / f'{name}.py'), run_name='__main__')
    said = re.search(r'(loss|accuracy) (\d\.\d{3})', capsys.readouterr().out)
    assert said and (float(said[2]) < 2.4 if said[1] == 'loss' else float(said[2]) > 0.15)
    if name == 'hf_trainer':
        assert (here / 'digits' / 'tuner.safetensors').stat().st_size < 300_000
    elif name != 'knn':
        fresh, loaded = as_saved(here / 'digits')
        assert loaded.isfinite().all() and not torch.equal(fresh, loaded)


@pytest.mark.slow
def test_accelerate_trains_in_two_processes(here):
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2']
    done = subprocess.run(
        [*command, str(FOLDER / 'two_processes.py')], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert 'processes 2, loss' in done.stdout
    fresh, loaded = as_saved(here / 'digits')
    assert not torch.equal(fresh, loaded)


@pytest.mark.parametrize('path', sorted(FOLDER.glob('*.py')), ids=lambda path: path.stem)
def test_an_example_has_at_most_40_lines(path):
    assert len(path.read_text().splitlines()) <= 40
