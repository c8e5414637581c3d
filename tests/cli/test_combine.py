"""tools/combine.py as a user types it."""

import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vet import pipeline
from vet.cli.combine import main

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_soup_of_a_run_with_itself_predicts_as_the_run(python, trainer, tmp_path):
    done = python(
        ROOT / 'tools/combine.py',
        tmp_path / 'out',
        trainer.folder.path,
        trainer.folder.output,
        '--weights',
        '0.5',
        '0.5',
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
    images = [trainer.data['test'][i][0] for i in range(4)]
    assert pipeline(model=tmp_path / 'out', device='cpu')(images) == pipeline(
        model=trainer.folder.output, device='cpu'
    )(images)


def test_sum_takes_negative_weights(monkeypatch, trainer, tmp_path):
    run = str(trainer.folder.path)
    monkeypatch.setattr(
        sys,
        'argv',
        [
            'combine',
            str(tmp_path / 'out'),
            run,
            run,
            '--method',
            'sum',
            '--weights',
            '1',
            '-0.25',
            '--head',
            '1',
        ],
    )
    main()
    before, after = (
        load_file(folder / 'tuner.safetensors') for folder in (trainer.folder.output, tmp_path / 'out')
    )
    for name, tensor in before.items():
        if name.startswith('tuners.0.'):
            weight = -0.25 if name.endswith('.B') else 1
            assert after[name].equal(tensor) and after['tuners.1.' + name.removeprefix('tuners.0.')].equal(
                weight * tensor
            )
    assert after['head.fc.weight'].equal(before['head.fc.weight'])


@pytest.mark.parametrize(
    'options, message',
    [
        (['--weights', '1'], 'allowed: a number for each of the 2 folders'),
        (['--head', '5'], 'allowed: 0 to 1'),
        (['--import', 'no_such_module'], '--import no_such_module failed'),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(monkeypatch, capsys, trainer, tmp_path, options, message):
    monkeypatch.setattr(
        sys, 'argv', ['combine', str(tmp_path / 'out'), *[str(trainer.folder.path)] * 2, *options]
    )
    with pytest.raises(SystemExit) as exit:
        main()
    out, err = capsys.readouterr()
    assert (
        exit.value.code == 2
        and out == ''
        and err.startswith('error: ')
        and message in err
        and len(err.splitlines()) == 1
    )
    assert not (tmp_path / 'out').exists()
