"""vet is typed: mypy checks a user's code against the signatures of vet."""

import pytest

RIGHT = """
from torch import nn
from vet import build_trainer, pipeline
from vet.core.site import Site
from vet.core.tuner import Tuner
from vet.registry import TUNERS

@TUNERS.register_module()
class MyTuner(Tuner):
    def tune(self, site: Site) -> None:
        self.after(site, nn.Identity())

accuracy: float = build_trainer(model='configs/quickstart.py').evaluate()['accuracy']
answer = pipeline('vision-efficient-tuning', 'runs/first')('digit.png')
"""
WRONG = """
from vet import build_trainer
accuracy: str = build_trainer(model='configs/quickstart.py').evaluate()['accuracy']
"""


@pytest.mark.slow
def test_mypy_sees_the_types_of_vet(python, tmp_path):
    (tmp_path / 'right.py').write_text(RIGHT)
    (tmp_path / 'wrong.py').write_text(WRONG)
    checked = python(
        '-m',
        'mypy',
        '--strict',
        '--follow-imports=silent',
        '--cache-dir',
        tmp_path / 'cache',
        'right.py',
        'wrong.py',
        cwd=tmp_path,
        MYPYPATH='',
    )
    errors = [line for line in checked.stdout.splitlines() if ': error:' in line]
    assert len(errors) == 1 and errors[0].startswith('wrong.py:3:') and '"float"' in errors[0], (
        checked.stdout + checked.stderr
    )
