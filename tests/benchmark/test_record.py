"""A result in benchmarks/ comes from a commit."""

import argparse
import json
import subprocess

import pytest
import torch

from vet.benchmark import record


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository in place of vet's own."""
    (tmp_path / 'vet').mkdir()
    (tmp_path / 'vet/__init__.py').touch()
    for command in (
        ['init', '-q'],
        ['add', '.'],
        ['-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '-q', '-m', 'ours'],
    ):
        subprocess.run(['git', *command], cwd=tmp_path, check=True)
    monkeypatch.setattr('vet.__file__', str(tmp_path / 'vet/__init__.py'))
    monkeypatch.setattr(record, 'ROOT', tmp_path)
    return tmp_path


def given(checkout, *options):
    parser = argparse.ArgumentParser()
    record.add_output(parser, checkout / 'benchmarks/results/one.json')
    return parser.parse_args(options)


def test_clean_code_writes(checkout):
    path = record.output(given(checkout))
    record.write(path, dict(accuracy=1))
    assert path == checkout / 'benchmarks/results/one.json' and path.read_text() == '{\n "accuracy": 1\n}\n'
    assert record.output(given(checkout)) == path  # the result itself is no change of the code


def test_changed_code_is_refused(checkout):
    (checkout / 'vet/__init__.py').write_text('1')
    with pytest.raises(SystemExit, match='one.json could not be reproduced'):
        record.output(given(checkout))
    assert not (checkout / 'benchmarks').exists()


def test_a_trial_writes_elsewhere(checkout):
    (checkout / 'vet/__init__.py').write_text('1')
    assert record.output(given(checkout, '--trial')) == checkout / 'build/trial/one.json'
    assert record.output(given(checkout, '--output', str(checkout / 'mine.json'))) == checkout / 'mine.json'


def test_a_row_is_measured_once(checkout):
    """A script that goes on keeps the rows of the file, and measures only the others."""
    path, names = record.output(given(checkout)), ('tuner', 'seed')
    record.Rows(path, names, 'digits').add(dict(tuner='LoRA', seed=0, accuracy=0.5), torch.device('cpu'))
    again = record.Rows(path, names, 'digits')
    assert dict(tuner='LoRA', seed=0) in again and dict(tuner='LoRA', seed=1) not in again
    again.add(dict(tuner='LoRA', seed=1, accuracy=0.75), torch.device('cpu'))
    found = json.loads(path.read_text())
    assert found['data'] == 'digits' and [run['accuracy'] for run in found['runs']] == [0.5, 0.75]
    assert all(run['environment']['git_changes'] is False for run in found['runs'])
