"""A Python program calls the command: its handlers of signals are as before."""

import signal

import pytest

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
