"""Stages: freeze, then unfreeze, each with its own optimizer and schedule; stopped at any step, a run
ends the same.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.runs import small
from vet.engine.saving.checkpoint import load_checkpoint
from vet.errors import UserError

STAGES = [
    dict(epochs=1, train=r'head\..*', optimizer=dict(type='SGD', lr=0.5, momentum=0.9)),
    dict(epochs=2, optimizer=dict(type='AdamW', lr=1e-3), head_lr=1e-2),
]
OPTIONS = {
    'train.stages': STAGES,
    'train.checkpoint': dict(every_steps=1, keep=100),
    'train.log_every': 1,
    'train.max_epochs': 3,
}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A whole run of 4 + 8 steps, every step a checkpoint, and its summary."""
    folder = tmp_path_factory.mktemp('stages')
    return folder, small(folder, **OPTIONS).train()


def test_first_stage_trains_the_head_alone(finished):
    folder, summary = finished
    [one, four, five] = (
        load_checkpoint(folder / 'checkpoints' / f'step-{step:08d}')[1]['model'] for step in (1, 4, 5)
    )
    moved = {name for name in one if not one[name].equal(four[name])}
    assert moved == {'head.fc.weight', 'head.fc.bias'}
    assert {name.rpartition('.')[2] for name in one if not four[name].equal(five[name])} == {
        'weight',
        'bias',
        'A',
        'B',
    }
    assert summary['epochs'] == 3 and summary['parameters']['tuners'] > 0


def test_each_stage_has_its_own_optimizer_and_schedule(finished):
    folder, _ = finished
    for step, entries in ((4, {'momentum_buffer'}), (5, {'step', 'exp_avg', 'exp_avg_sq'})):
        state = load_checkpoint(folder / 'checkpoints' / f'step-{step:08d}')[1]['optimizer']
        assert {key.rpartition(':')[2] for key in state} == entries
    lines = [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
    rates = [line['lr'] for line in lines if 'lr' in line]
    assert rates[0] > 0.45 > 0.1 > rates[3]  # half a cosine down from 0.5, over four steps
    assert (
        9e-4 < rates[4] <= 1e-3
        and rates[11] < 1e-4
        and rates == sorted(rates[:4])[::-1] + sorted(rates[4:])[::-1]
    )


@pytest.mark.parametrize('step', [2, 4, 5])
def test_run_resumed_within_or_between_stages_ends_the_same(finished, tmp_path, step):
    folder, _ = finished
    shutil.copytree(folder, tmp_path / 'run')
    (tmp_path / 'run' / 'summary.json').unlink()
    small(tmp_path / 'run', str(tmp_path / 'run' / 'checkpoints' / f'step-{step:08d}'), **OPTIONS).train()
    again, whole = (load_file(path / 'output' / 'tuner.safetensors') for path in (tmp_path / 'run', folder))
    assert all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    'stages, text',
    [
        (
            [dict(epochs=2, train='haed.*')],
            r"the stage train='haed.\*' trains none of the 14 parameters, such as tuners",
        ),
        ([dict(epochs=0)], r'train.stages\[0\].epochs is 0; it must be at least 1'),
        ([dict(train='head.*')], r'train.stages\[0\] lacks epochs'),
        ([dict(epochs=1, freeze='head')], r"unknown key in train.stages\[0\] 'freeze'"),
        (dict(epochs=1), r'train.stages is .* it must be a list of dicts with the keys epochs, train'),
    ],
)
def test_refusals(tmp_path, stages, text):
    with pytest.raises(UserError, match=text):
        small(tmp_path, **{'train.stages': stages}).train()
