"""What signals do to a command, also within a Python program: its handlers of signals are as before."""

import os
import signal

import pytest
from PIL import Image, ImageFile

from vet.cli.vet import main

NUMBERS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]


@pytest.mark.parametrize('line', ['--version', 'list roles --help', 'nosuch', 'list tuners'])
def test_the_handlers_are_as_before(line, monkeypatch, capsys):
    for number in NUMBERS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    before = [signal.getsignal(number) for number in NUMBERS]
    monkeypatch.setattr('sys.argv', ['vet', *line.split()])
    try:
        main()
    except SystemExit:
        pass
    assert [signal.getsignal(number) for number in NUMBERS] == before


@pytest.mark.parametrize(
    'command, number',
    [
        pytest.param(
            command,
            number,
            marks=[pytest.mark.slow] if command == 'check' and number != signal.SIGTERM else [],
            id=f'{command}-{number.name}',
        )
        for command in ('predict', 'check')
        for number in NUMBERS
    ],
)
def test_a_command_says_that_a_signal_stopped_it(command, number, trainer, tmp_path, monkeypatch, capsys):
    for name in 'ab':
        (tmp_path / 'photos' / name).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(tmp_path / 'photos' / name / '1.png')
    left = [
        number
    ]  # a second signal would reach the tests, if another thread sent it after the command's end

    def send(*args, **options):
        if left:
            os.kill(os.getpid(), left.pop())

    monkeypatch.setattr(ImageFile.ImageFile, 'load', send)
    monkeypatch.setattr('vet.check.sameness.look', send)
    words = dict(predict=[trainer.folder.output, tmp_path / 'photos'], check=[tmp_path / 'photos'])
    monkeypatch.setattr('sys.argv', ['vet', command, *map(str, words[command])])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 128 + number
    assert capsys.readouterr().err.splitlines()[-1] == 'stopped'
