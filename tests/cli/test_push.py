"""vet push as a user types it."""

import runpy
import sys
from functools import partial
from pathlib import Path

import pytest

from vet import pipeline
from vet.cli.vet import main

ROOT = Path(__file__).parents[2]


def test_push_to_a_folder_and_predict_from_it(command, trainer, tmp_path):
    image = tmp_path / 'a.png'
    trainer.data['test'][0][0].save(image)
    code, out, err = command('push', trainer.folder.path, './owner/name', '--license', 'mit')
    assert (code, out, err) == (0, f'{(tmp_path / "owner/name").as_uri()}\n', '')
    assert 'license: mit' in Path('owner/name/README.md').read_text()
    code, shown, err = command('predict', out.strip(), image, '--device', 'cpu')
    assert code == 0 and all(label in shown for label in '56789'), err
    code, out, err = command('test', out.strip(), '--device', 'cpu')
    assert code == 0 and f'{trainer.summary["accuracy"]}' in out, err
    assert pipeline(model='owner/name', device='cpu').classes == ['5', '6', '7', '8', '9']


def test_options_reach_the_hub(command, trainer, monkeypatch):
    calls = []
    monkeypatch.setattr(
        'vet.hub.hub.push_to_hub',
        lambda *args, **options: calls.append((args, options)) or 'https://hub/owner/name',
    )
    folder = trainer.folder.output
    assert command('push', folder, 'owner/name')[:2] == (0, 'https://hub/owner/name\n')
    assert (
        command('push', folder, 'owner/name', '--private', '--revision', 'v2', '--message', 'Second')[0] == 0
    )
    assert calls == [
        (
            (folder, 'owner/name'),
            dict(private=None, commit_message='Add the model', revision=None, license=None),
        ),
        ((folder, 'owner/name'), dict(private=True, commit_message='Second', revision='v2', license=None)),
    ]


def test_mistakes(fails, trainer, tmp_path):
    fails("'none' does not exist", of=['push', 'none', 'owner/name'])
    fails("'name' is no place for a model", of=['push', trainer.folder.path, 'name'])
    fails('is no model folder', of=['push', tmp_path, './remote'])


@pytest.mark.parametrize(
    'start', [main, partial(runpy.run_path, str(ROOT / 'tools/push.py'), run_name='__main__')]
)
def test_it_is_a_command(start, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['vet', *['push'] * (start is main), '--help'])
    with pytest.raises(SystemExit) as exit:
        start()
    assert exit.value.code == 0 and 'OWNER/NAME' in capsys.readouterr().out
