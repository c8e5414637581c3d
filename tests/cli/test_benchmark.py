"""tools/benchmark.py as a user types it: tables, report, comparison, and the exit code of a campaign
with a failed run.
"""

import csv
import json
import re
import sys
from pathlib import Path

import pytest

from tests.benchmark.made import failed, result, written
from tests.benchmark.runs import here, write_suite
from vet.benchmark import local
from vet.benchmark.results import read_results
from vet.cli import benchmark

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """command(*arguments): (exit code, what was printed) of the command in this process, its runs too,
    in a folder of its own.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, 'Local', lambda *_: here)
    monkeypatch.setenv('COLUMNS', '160')
    monkeypatch.setenv('LINES', '50')

    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', ['benchmark', *map(str, arguments)])
        try:
            benchmark.main()
            code = 0
        except SystemExit as exit:
            code = exit.code
        out, err = capsys.readouterr()
        return code, out + err

    return call


def of(tuner, seed, accuracy, **changes):
    return result(tuner, seed, accuracy, 'few', 'vit', suite='tiny', **changes)


@pytest.fixture
def folder(tmp_path):
    """The results of a suite: three seeds of a tuner, one that failed of the other."""
    path = tmp_path / 'results' / 'tiny'
    written(
        path,
        *(of('linear', seed, accuracy) for seed, accuracy in enumerate((0.90, 0.92, 0.94))),
        failed(error='out of [bold]memory', tuner='bias', dataset='few', backbone='vit', suite='tiny'),
    )
    return path


def test_report_writes_everything_again_and_runs_nothing(command, folder, tmp_path):
    suite = write_suite(tmp_path, 'seeds = [0, 1, 2]')
    code, shown = command(suite, '--results', 'results', '--report')
    assert code == 0 and '92.00 ± 2.00' in shown and 'failed' in shown
    for name in ('table.md', 'table.csv', 'report.html'):
        assert f'written to results/tiny/{name}' in shown
    # they were made by hand
    assert '| linear | 92.00 ± 2.00 (of an earlier config) |' in (folder / 'table.md').read_text()
    assert 'out of [bold]memory' in (folder / 'report.html').read_text()
    assert 'By class: few.vit.linear.seed2' in (folder / 'report.html').read_text()
    assert not (tmp_path / 'work_dirs').exists() and len(read_results(folder)) == 4


def test_run_chooses_whose_classes_are_shown(command, folder, tmp_path):
    suite = write_suite(tmp_path)
    assert command(suite, '--results', 'results', '--report', '--run', 'few.vit.linear.seed0')[0] == 0
    assert 'By class: few.vit.linear.seed0' in (folder / 'report.html').read_text()
    code, shown = command(suite, '--results', 'results', '--report', '--run', 'few.vit.lienar.seed0')
    assert code == 2 and "unknown run 'few.vit.lienar.seed0'. Did you mean 'few.vit.linear.seed0'" in shown


def test_compare(command, folder, tmp_path):
    written(
        tmp_path / 'other',
        *(of('linear', seed, accuracy) for seed, accuracy in enumerate((0.50, 0.51, 0.52))),
    )
    code, shown = command('--compare', 'results', 'other')
    assert code == 0 and 'few.vit.linear' in shown and '-41.00' in shown and 'differs' in shown
    assert command('--compare', 'results', 'results')[1].count('within seed noise') == 1


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'no suite is given; give a suite file'),
        (
            ['tiny.py', '--results', 'none', '--report'],
            "'none/tiny' has no whole result; run the suite without --report first",
        ),
        (['--compare', 'results', 'none'], "'none' has no whole result; give a folder of results"),
        (
            ['--compare', 'results', 'more'],
            "'results' and 'more' have no cell (dataset, backbone and tuner) in common",
        ),
    ],
)
def test_mistakes(command, folder, tmp_path, arguments, message):
    write_suite(tmp_path)
    written(tmp_path / 'more', of('other', 0, 0.5))
    code, shown = command(*arguments)
    assert code == 2 and message in shown and 'Traceback' not in shown


@pytest.mark.slow
def test_a_failed_run_is_told_after_all_else_and_is_made_again(command, tmp_path):
    broken = "\ntuners['bias'] = dict(tuners=[dict(type='BitFit')], options={'train.optimizer.lr': 1e30})"
    arguments = write_suite(tmp_path, broken), '--results', 'results', '--device', 'cpu'
    code, shown = command(*arguments)
    lines = shown.splitlines()
    assert code == 1 and lines[-2] == 'failed: 1' and lines[-1].startswith('few.vit.bias.seed0: lr is 1e+30')
    assert (
        'written to results/tiny/report.html' in shown
        and '| bias | failed |' in Path('results/tiny/table.md').read_text()
    )
    write_suite(tmp_path)
    code, shown = command(*arguments)
    assert code == 0 and 'failed' not in shown + Path('results/tiny/table.md').read_text()


@pytest.mark.slow
def test_the_quickstart_from_end_to_end(python, tmp_path):
    """One epoch, one seed, two tuners, in processes of their own; given again, it makes no run, and
    writes the same.
    """
    call = (
        ROOT / 'tools/benchmark.py',
        ROOT / 'benchmarks/suites/quickstart.py',
        '--only',
        '*.l*',
        '--results',
        tmp_path / 'results',
        '--work-dir',
        tmp_path / 'work',
        '--device',
        'cpu',
        '--cfg-options',
        'train.max_epochs=1',
        'seeds=[0]',
    )
    done = python(*call, COLUMNS='160')
    assert done.returncode == 0, done.stderr
    folder = tmp_path / 'results' / 'quickstart'
    lines = {line['tuner']: line for line in csv.DictReader((folder / 'table.csv').open())}
    for tuner in ('linear', 'lora'):
        saved = json.loads((folder / f'digits.digits_vit.{tuner}.seed0.json').read_text())
        assert float(lines[tuner]['mean']) == pytest.approx(100 * saved['metrics']['accuracy'])
        assert f'{100 * saved["metrics"]["accuracy"]:.2f}' in done.stdout
    assert lines['ssf']['state'] == 'not measured' and lines['lora']['parameters without head'] == '12288.0'
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = python(*call)
    assert again.returncode == 0 and {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.slow
def test_a_dry_run_tells_what_runs_may_take_though_nothing_was_measured(command, tmp_path):
    suite = write_suite(tmp_path)
    call = (suite, '--dry-run', '--only', '*.linear', '--device', 'cpu', '--results', tmp_path / 'results')
    code, said = command(*call)
    assert code == 0 and re.search(r'few.vit.linear.seed0 +│ to do +│ \d+ s of training', said)
    assert re.search(
        r'0 done, 1 to do: \d+ s, .*1 of them are estimates for training alone, by 3 steps timed here', said
    )
    total, starts = re.search(r'1 to do: (\d+) s, .* with (\d+) s for 1 starts of Python', said).groups()
    assert int(total) >= int(starts) > 0
    assert not (tmp_path / 'results').exists()
    assert command(*(part for part in call if part != '--dry-run'))[0] == 0
    assert (
        re.search(r'seed0 +│ done +│ +│', said := command(*call)[1])
        and '1 done, 0 to do: 0 s, one after another' in said
    )
