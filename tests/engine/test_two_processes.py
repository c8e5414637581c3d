"""Two processes train and measure what one does."""

import argparse
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.engine.runs import TWO_PROCESSES, config
from tests.engine.two_processes import CASES, GPS, METRICS, train_all
from vet.builders import build_model
from vet.cli.test import evaluate
from vet.config import read_settings
from vet.engine.feed.batches import Order, load
from vet.engine.saving.log import read_log
from vet.registry import DATASETS
from vet.transforms.torchvision import build_transform

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """The folders of one process and of two."""
    one, two = tmp_path_factory.mktemp('one'), tmp_path_factory.mktemp('two')
    command = [sys.executable, *TWO_PROCESSES, '-m', 'tests.engine.two_processes', str(two)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES=''),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        train_all(one, processes=1)
        output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return one, two


@pytest.mark.parametrize('name', CASES)
def test_weights_agree(runs, name):
    one, two = (load_file(folder / name / 'output' / 'tuner.safetensors') for folder in runs)
    assert set(one) == set(two)
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', CASES)
def test_metrics_agree(runs, name):
    """Exactly, on numbers of images that two divides and does not divide."""
    dataset = config()['dataset']
    lengths = {split: len(DATASETS.build(dataset[split], root='')) for split in dataset}
    assert lengths['train'] == 599
    one, two = (json.loads((folder / f'{name}.json').read_text()) for folder in runs)
    keys = (*METRICS, 'before', 'validation', 'on_train', 'selected', 'steps', 'parameters')
    assert {key: two[key] for key in keys} == {key: one[key] for key in keys}
    assert len(set(one['on_train'].values())) >= 3  # three metrics that agree by chance would prove little


def test_answers_stand_in_the_order_of_the_images(runs):
    targets = DATASETS.build(config()['dataset']['test'], root='').targets
    for folder in runs:
        with np.load(folder / 'plain' / 'predictions.npz') as answers:
            assert answers['labels'].tolist() == list(targets)
            right = float((answers['labels'] == answers['given']).mean())
        assert right == json.loads((folder / 'plain.json').read_text())['accuracy']


@pytest.mark.parametrize('name', CASES)
def test_logs_agree(runs, name):
    one, two = (read_log(folder / name) for folder in runs)
    assert len(one) == len(two) > 2
    for a, b in zip(one, two):
        for key in ('step', 'epoch', 'loss', 'accuracy', 'lr', 'val_accuracy'):
            assert b.get(key) == pytest.approx(a.get(key), abs=1e-5), key


@pytest.fixture(scope='module', params=['norms', 'gps', 'unread'])
def both(request, runs):
    """What the two processes evaluated and hold, and the folder that they wrote, where no device was
    given.
    """
    folder = runs[1]
    return [
        json.loads((folder / f'{request.param}-{rank}.json').read_text()) for rank in (0, 1)
    ], folder / request.param


def test_they_are_one_run(both):
    (first, second), _ = both
    assert first['processes'] == 2 and first['device'].startswith('cpu')
    assert first == second


def test_what_they_report_is_the_saved_models(both):
    (first, _), folder = both
    if folder.name == 'unread':
        pytest.skip('the tuner is known to those processes alone')
    summary = json.loads((folder / 'summary.json').read_text())
    assert summary['accuracy'] == first['accuracy']
    asked = dict(model=str(folder), imports=[], cfg_options=None, device='cpu', data_root=None)
    asked |= dict(backbone=None, knn=None)
    again = {
        split: evaluate(argparse.Namespace(split=split, **asked))['accuracy'] for split in ('test', 'train')
    }
    assert again == dict(test=first['accuracy'], train=first['on_train'])


def test_running_statistics_are_counted_alike(runs):
    """Of 599 images, the 14th batch of 46 is a single one: behind a pool that image has no statistics,
    elsewhere it has.
    """
    state = json.loads((runs[1] / 'norms-0.json').read_text())['state']
    counted = {tuple(value) for name, value in state.items() if name.endswith('num_batches_tracked')}
    assert counted == {(13.0,), (14.0,)}


def test_gps_chooses_by_the_images_of_both(runs):
    """As one process chooses that sees the batches of both; the batches of one process choose otherwise."""
    made = config(**GPS)
    model = build_model(read_settings(made), list('56789'))
    [tuner] = model.tuners
    data = DATASETS.build(made['dataset']['train'], root='')
    view = build_transform([], **vars(model.backbone.preprocessing))
    parts = []
    for rank in (0, 1):
        keys = list(islice(Order(len(data), 32, 1, 0, rank, 2).keys(0), 2))
        parts.append(
            [
                (batch.images, batch.labels)
                for batch in load(data, {None: view}, 0, keys, 0, torch.device('cpu'))
            ]
        )
    state = json.loads((runs[1] / 'gps-0.json').read_text())['state']

    def agreement(batches):
        tuner.images = sum(len(images) for images, _ in batches)
        tuner.prepare(batches)
        pairs = [
            (place, other)
            for name, value in model.trained_state().items()
            if name.endswith('index')
            for place, other in zip(value.flatten().tolist(), state[name])
        ]
        return sum(place == other for place, other in pairs) / len(pairs)

    assert agreement(parts[0] + parts[1]) > 0.995
    assert agreement(parts[0]) < 0.95 and agreement(parts[1]) < 0.95
