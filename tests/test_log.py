"""The log `vet`: a library configures no logger; a command shows progress on stderr and results on stdout."""

import pytest

SAY = (
    'import logging, sys; from vet.log import say, warn; exec(sys.argv[1]); say("progress 5 %"); '
    'warn("a warning"); print(logging.getLogger().handlers, logging.getLogger("vet").handlers)'
)
QUICK = ['train.max_epochs=1', 'train.lr_scheduler.warmup_epochs=0', 'evaluation.before=False']
TRAIN = ['train', 'quickstart', '--work-dir', 'work', '--device', 'cpu']


@pytest.mark.parametrize(
    'configured, said',
    [
        ('', 'a warning\n'),
        ('logging.basicConfig(level="INFO")', 'INFO:vet:progress 5 %\nWARNING:vet:a warning\n'),
        ('logging.basicConfig(level="ERROR")', ''),
    ],
)
def test_a_library_configures_no_logger(python, configured, said):
    done = python('-c', SAY, configured)
    assert done.stderr == said
    assert done.stdout.startswith('[]' if not configured else '[<StreamHandler') and '[]\n' in done.stdout


@pytest.mark.parametrize('quiet, said', [(False, 'progress\na warning\n'), (True, 'a warning\n')])
def test_a_command_shows_the_log_and_quiet_only_warnings(python, quiet, said):
    code = (
        'from vet.log import say, shows_bars, show_log, warn; '
        f'show_log({quiet}); say("progress"); warn("a warning"); print(shows_bars())'
    )
    done = python('-c', code)
    assert (done.stdout, done.stderr) == ('False\n', said)


def test_a_quiet_training_prints_results_alone(capsys, monkeypatch, tmp_path):
    from vet.cli import train
    from vet.log import show_log

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['vet train', *TRAIN[1:], '--quiet', '--cfg-options', *QUICK])
    try:
        train.main()
    finally:
        show_log()
    out, err = capsys.readouterr()
    assert err == '' and 'test accuracy after' in out and 'epoch 1: loss' not in out


@pytest.mark.slow
def test_results_go_to_stdout_and_progress_to_stderr(python, tmp_path):
    done = python('-m', 'vet', *TRAIN, '--cfg-options', *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'epoch 1: loss' in done.stderr and 'test accuracy' not in done.stderr
    assert 'test accuracy after' in done.stdout and 'loss' not in done.stdout
    again = python('-m', 'vet', 'benchmark', 'quickstart', '--dry-run', '--only', '*.linear', cwd=tmp_path)
    assert 'linear.seed0' in again.stdout and 'linear.seed0' not in again.stderr, again.stderr
