"""A result in benchmarks/ comes from a commit."""

import argparse
import subprocess

import pytest

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
