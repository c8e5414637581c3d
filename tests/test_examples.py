"""The examples as their docstrings say to run them: trained by the command, used in a new process that
imports the plugin.
"""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    'name, accuracy', [('own_tuner', 0.3), pytest.param('own_parts', 0.65, marks=pytest.mark.slow)]
)
def test_example(name, accuracy, python, tmp_path):
    folder, work = ROOT / 'examples' / name, tmp_path / 'work'
    done = python(
        ROOT / 'tools/train.py',
        folder / 'config.py',
        '--work-dir',
        work,
        '--device',
        'cpu',
        '--cfg-options',
        'train.max_epochs=1',
        'evaluation.before=False',
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((work / 'summary.json').read_text())
    assert summary['accuracy'] > accuracy
    code = (
        f'import sys; sys.path.append({str(folder)!r}); import {name}\nimport json; from vet import '
        'pipeline\n'
        f"print(json.dumps(pipeline('vision-efficient-tuning', 'output', device='cpu')('example.png')))\n"
        f"sys.argv = ['test', '.', '--device', 'cpu', '--import', {str(folder / name) + '.py'!r}]\n"
        f'from vet.cli.test import main; main()'
    )
    done = python('-c', code, cwd=work)
    assert done.returncode == 0, done.stderr
    result, _, metrics = done.stdout.partition('\n')
    assert len(json.loads(result)['labels']) >= 2 and json.loads(metrics) == {'accuracy': summary['accuracy']}


def test_own_tuner_is_short_and_the_readmes():
    code = (ROOT / 'examples/own_tuner/own_tuner.py').read_text()
    lines = [line for line in code.partition('class Scale')[2].splitlines() if line.strip()]
    assert len(lines) <= 15
    [block] = re.findall(r'```python\n# own_tuner.py\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    assert [line for line in block.splitlines() if line.strip() and line not in code] == []
