"""The wheel and the sdist: their files, and vet as a user has it who installs the wheel and has no checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from vet.shipped import FOLDERS, shipped

ROOT = Path(__file__).parents[1]
NEEDED = ('pyproject.toml', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE', 'CHANGELOG.md', 'CITATION.cff')
SOURCES = ('vet', 'configs', 'benchmarks/suites', 'examples')
BUILD = 'import sys; from setuptools import build_meta; print(getattr(build_meta, "build_" + sys.argv[1])(sys.argv[2]))'


def built(kind, source, output):
    """The wheel or sdist that setuptools builds from a folder."""
    output.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, '-c', BUILD, kind, output], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return output / done.stdout.splitlines()[-1]


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of the files that a package is built from. So a build leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp('source')
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in NEEDED:
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    return built('wheel', source, tmp_path_factory.mktemp('wheel'))


def test_the_wheel_holds_vet_and_every_shipped_file_and_nothing_else(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in name]
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / 'vet').rglob('*.py')}
    data = {
        'vet/py.typed',
        'vet/__init__.pyi',
        'vet/backbones/digits_vit.safetensors',
        'vet/benchmark/references.yaml',
    }
    data |= {str(path.relative_to(ROOT)) for path in (ROOT / 'vet/serve/page').iterdir()}
    copies = {name for name in names if name.startswith('vet/shipped_files/')}
    assert sorted(names) == sorted(ours | data | copies)
    files = [path.relative_to(ROOT) for kind in FOLDERS for path in shipped(kind).values()]
    assert {f'vet/shipped_files/{path}' for path in files} <= copies
    assert 'vet/shipped_files/examples/own_tuner/own_tuner.py' in copies
    with zipfile.ZipFile(wheel) as packed:
        for name in copies:
            assert packed.read(name) == (ROOT / name.removeprefix('vet/shipped_files/')).read_bytes()
    assert wheel.stat().st_size < 3e6


def test_the_sdist_builds_the_same_wheel(source, wheel, tmp_path):
    sdist = built('sdist', source, tmp_path / 'sdist')
    with tarfile.open(sdist) as packed:
        packed.extractall(tmp_path, filter='data')
    again = built('wheel', tmp_path / sdist.name.removesuffix('.tar.gz'), tmp_path / 'wheel')
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_an_installed_wheel_works_in_an_empty_folder(wheel, tmp_path):
    """A new environment gets the wheel, and finds the other packages in this environment."""
    home, folder = tmp_path / 'env', tmp_path / 'empty'
    folder.mkdir()
    venv.create(home, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path('purelib', vars=dict(base=str(home), platbase=str(home))))
    pip = [
        sys.executable,
        '-m',
        'pip',
        '--python',
        home / 'bin/python',
        'install',
        '-q',
        '--no-deps',
        '--no-index',
    ]
    done = subprocess.run([*pip, wheel], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (site / 'others.pth').write_text(sysconfig.get_path('purelib') + '\n')
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}

    def call(*arguments, program='vet'):
        ended = subprocess.run(
            [home / 'bin' / program, *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            env=environment | dict(OMP_NUM_THREADS='1', COLUMNS='200'),
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert call('-c', 'import vet; print(vet.__file__)', program='python').startswith(str(site))
    assert call('--version') == call('-m', 'vet', '--version', program='python')
    assert 'vitb16_lora_flowers' in call('list', 'configs')
    assert 'train.optimizer.type' in call('recipes', 'vpt2022', 'ssf2022')
    call('config', 'copy', 'vitb16_lora_flowers', '.')
    assert "[dict(type='LoRA', rank=10)]    (set" in call('config', 'vitb16_lora_flowers.py')
    quick = ['--device', 'cpu', '--cfg-options', 'train.max_epochs=2']
    assert 'test accuracy after' in call('train', 'quickstart', '--work-dir', 'work', *quick)
    assert 'accuracy' in call('test', 'work', '--device', 'cpu')
    call('train', 'own_tuner', '--work-dir', 'own', *quick)
    only = ['--only', '*.linear', '--device', 'cpu', '--cfg-options', 'seeds=[0]', 'train.max_epochs=1']
    assert 'linear' in call('benchmark', 'quickstart', *only)
    start = ['-m', 'torch.distributed.run', '--nproc-per-node', '1', '-m', 'vet']
    call(*start, 'train', 'quickstart', '--work-dir', 'again', *quick, program='python')
    assert (folder / 'again/summary.json').is_file()
