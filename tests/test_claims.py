"""What the pages say comes from result files, result files come from commits, and counts are those of
the code.
"""

import argparse
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vet.backbones.digits import SHA256, WEIGHTS
from vet.builders import build_trainer
from vet.datasets.base import ImageDataset

ROOT = Path(__file__).parents[1]
RESULTS = sorted(
    [*(ROOT / 'benchmarks/results').rglob('*.json'), *(ROOT / 'benchmarks/speed/results').rglob('*.json')]
)
README = (ROOT / 'README.md').read_text()


def script(name):
    """A script of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(f'benchmarks_{name}', ROOT / 'benchmarks' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def tables():
    before = list(sys.path)
    yield script('tables')
    sys.path[:] = before


def environments(value):
    """Every environment in a result."""
    if isinstance(value, dict):
        yield from (
            [value]
            if 'git_changes' in value
            else (found for part in value.values() for found in environments(part))
        )
    elif isinstance(value, list):
        yield from (found for part in value for found in environments(part))


@pytest.mark.parametrize('path', RESULTS, ids=lambda path: path.name)
def test_a_committed_result_comes_from_a_commit(path):
    found = list(environments(json.loads(path.read_text())))
    assert found
    for environment in found:
        assert environment['git_changes'] is False and re.fullmatch(
            '[0-9a-f]{40}', environment['git_revision']
        )
        assert environment['cores'] and environment['packages']['torch']


def test_the_pages_show_what_the_result_files_hold(tables):
    for page, text in tables.pages().items():
        assert '<!-- measured -->' in text and page.read_text() == text, (
            f'{page.name}: run python benchmarks/tables.py'
        )


def test_a_typed_number_between_the_markers_is_found(tables):
    page, text = next(iter(tables.pages().items()))
    assert (
        tables.filled(text.replace('<!-- end -->', '| 99.99 |\n\n<!-- end -->'), ['| 1.00 |']).count('99.99')
        == 0
    )


@pytest.mark.parametrize(
    'path', [*ROOT.glob('configs/**/*.py'), *ROOT.glob('benchmarks/suites/*.py')], ids=lambda path: path.name
)
def test_no_config_has_a_measured_number(path):
    assert not re.search(r'[Mm]easured(:| on)', path.read_text().replace('Not measured', ''))


def test_the_shipped_backbone_is_the_stated_one():
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == SHA256


def test_no_target_writes_over_the_shipped_backbone():
    assert 'vet/backbones' not in (ROOT / 'Makefile').read_text()


def test_the_counts_of_the_readme_are_those_of_the_quickstart(tmp_path):
    count = build_trainer(
        model=str(ROOT / 'configs/quickstart.py'), work_dir=tmp_path, device='cpu'
    ).model.count()
    said = re.search(
        r'^trainable parameters +([\d,]+) \(tuners ([\d,]+), head ([\d,]+)\)\ntotal parameters +([\d,]+)$',
        README,
        re.M,
    )
    assert [int(number.replace(',', '')) for number in said.groups()] == [
        count[key] for key in ('trainable', 'tuners', 'head', 'total')
    ]


def test_the_readme_says_about_what_the_quickstart_measured():
    runs = [
        run
        for run in json.loads((ROOT / 'benchmarks/results/quickstart.json').read_text())['runs']
        if run['tuner'] == 'LoRA'
    ]
    accuracies = [run['accuracy'] for run in runs]
    about = float(re.search(r'^test accuracy after +about (0\.\d\d)$', README, re.M)[1])
    assert abs(about - sum(accuracies) / len(accuracies)) < 0.015


def test_measure_runs_every_script_that_exists():
    measure = script('measure')
    scripts = {name: measure.command(name, Path('data'), False)[1] for name in measure.JOBS}
    assert all(Path(file).is_file() for file in scripts.values())
    shown = {'benchmarks/' + Path(file).name for file in scripts.values()} | {
        'benchmarks/speed/' + Path(file).name for file in scripts.values()
    }
    shown |= {'benchmarks/speed/gpu.py'}  # needs a GPU
    pages = ''.join((ROOT / page).read_text() for page in ('README.md', 'docs/ecosystem.md', 'docs/speed.md'))
    assert {name for name in re.findall(r'`python (benchmarks/[\w/]+\.py)`', pages)} <= shown


@pytest.mark.slow
def test_a_backbone_is_rebuilt_beside_the_shipped_one(tmp_path):
    """The commands of `make backbone`, of one epoch."""
    before, work = WEIGHTS.read_bytes(), tmp_path / 'digits_vit'
    for command in (
        [
            'tools/train.py',
            'configs/digits_vit_pretrain.py',
            '--work-dir',
            work,
            '--device',
            'cpu',
            '--cfg-options',
            'train.max_epochs=1',
            'train.lr_scheduler.warmup_epochs=0',
        ],
        ['tools/export.py', work, work.with_suffix('.safetensors')],
        ['benchmarks/backbone.py', work],
    ):
        done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert re.search(
        r'largest difference of the weights is \d\.\de[+-]\d\d\naccuracy on the digits 0 to 4: shipped 0\.9\d+',
        done.stdout,
    )
    assert WEIGHTS.read_bytes() == before


def test_both_sides_of_the_comparison_with_peft_follow_one_recipe(tmp_path, monkeypatch):
    """vet's trainer and PEFT's loop end at the same numbers, up to rounding."""
    compared, random = script('peft_flowers'), np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)) for _ in range(16)]
    train, test = (
        ImageDataset(['a', 'b'], [(picture, i % 2) for i, picture in enumerate(part)])
        for part in (pictures[4:], pictures[:4])
    )
    args, models = argparse.Namespace(pixels=32, workers=0), []

    def trainer(name):
        return build_trainer(
            model=str(compared.CONFIG),
            work_dir=tmp_path / name,
            device='cpu',
            train_dataset=train,
            eval_dataset=test,
            cfg_options={
                'model.backbone.pretrained': False,
                'model.backbone.kwargs.img_size': 32,
                'train.max_epochs': 2,
                'dataset.val': None,
                'evaluation.before': False,
                'train.dataloader.batch_size_per_gpu': 8,
                'train.dataloader.workers_per_gpu': 0,
                'evaluation.dataloader.workers_per_gpu': 0,
            },
        )

    start = compared.same_start
    monkeypatch.setattr(compared, 'same_start', lambda *given: models.append(start(*given)) or models[0])
    theirs, ours = (
        compared.with_peft(trainer('peft'), args),
        (own := trainer('vet')) and compared.with_vet(own, args),
    )
    assert ours['accuracy'] == theirs['accuracy']
    peft = {
        re.sub(r'\.default\.weight$', '', name): value
        for name, value in models[0].named_parameters()
        if value.requires_grad
    }
    for name, value in own.model.trainable().items():
        path, _, letter = name.removeprefix('tuners.0.deltas.').rpartition('.')
        other = (
            peft[f'base_model.model.{path}.lora_{letter}']
            if name.startswith('tuners')
            else next(
                one
                for key, one in peft.items()
                if key.startswith('base_model.model.head') and one.shape == value.shape
            )
        )
        assert torch.allclose(value, other, atol=1e-5), name
