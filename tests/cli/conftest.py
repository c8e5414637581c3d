"""Fixtures of the commands' tests: a command called as a user types it, and one that must refuse."""

import importlib
import sys

import pytest


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """command('train', *arguments): (exit code, stdout, stderr) of the command, in this process, in a
    folder of its own.
    """
    monkeypatch.chdir(tmp_path)

    def call(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        try:
            importlib.import_module(f'vet.cli.{name}').main()
            code = 0
        except SystemExit as exit:
            code = exit.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def fails(command):
    """fails(*parts of the message, of=[command, …]): exit code 2, one message, no traceback."""

    def check(*parts, of):
        code, out, err = command(*of)
        assert (code, out) == (2, '') and err.startswith('error: ') and 'Traceback' not in err, err
        assert len(err.splitlines()) == 1
        for part in parts:
            assert part in err, err

    return check
