"""The examples as their docstrings say to run them: trained by the command, used in a new process that
imports the plugin.
"""

import importlib
import json
import os
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from vet import pipeline

ROOT = Path(__file__).parents[1]


def train(config, work):
    """Of a child process: trains as the command does."""
    options = ['train.max_epochs=1', 'evaluation.before=False']
    sys.argv = ['train', str(config), '--work-dir', str(work), '--device', 'cpu', '--cfg-options', *options]
    importlib.import_module('vet.cli.train').main()


def use(plugin, work):
    """Of a child process: classifies in Python, and tests by the command. Each imports the plugin first."""
    os.chdir(work)
    sys.path.insert(0, str(plugin.parent))
    importlib.import_module(plugin.stem)
    classify = pipeline('vision-efficient-tuning', 'output', device='cpu')
    Path('classified.json').write_text(json.dumps(classify('example.png')))
    sys.argv = ['test', '.', '--device', 'cpu', '--import', str(plugin)]
    with Path('tested.json').open('w') as file, redirect_stdout(file):
        importlib.import_module('vet.cli.test').main()


@pytest.mark.parametrize(
    'name, accuracy', [('own_tuner', 0.3), pytest.param('own_parts', 0.65, marks=pytest.mark.slow)]
)
def test_example(name, accuracy, process, tmp_path):
    folder, work = ROOT / 'examples' / name, tmp_path / 'work'
    for target, file in ((train, folder / 'config.py'), (use, folder / f'{name}.py')):
        child = process(target, file, work)
        child.join()
        assert child.exitcode == 0
    summary = json.loads((work / 'summary.json').read_text())
    assert summary['accuracy'] > accuracy
    assert len(json.loads((work / 'classified.json').read_text())['labels']) >= 2
    assert json.loads((work / 'tested.json').read_text()) == {'accuracy': summary['accuracy']}


def test_own_tuner_is_short_and_the_readmes():
    code = (ROOT / 'examples/own_tuner/own_tuner.py').read_text()
    lines = [line for line in code.partition('class Scale')[2].splitlines() if line.strip()]
    assert len(lines) <= 15
    [block] = re.findall(r'```python\n# own_tuner.py\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    assert [line for line in block.splitlines() if line.strip() and line not in code] == []
