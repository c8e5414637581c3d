"""vet is typed: mypy checks a user's code against the signatures of vet."""

import pytest

RIGHT = """
from torch import nn
from vet import OFT, LoHa, LoRA, build_trainer, pipeline
from vet.core.site import Site
from vet.core.tuner import Tuner
from vet.registry import TUNERS

@TUNERS.register_module()
class MyTuner(Tuner):
    def tune(self, site: Site) -> None:
        self.after(site, nn.Identity())

accuracy: float = build_trainer(model='configs/quickstart.py').evaluate()['accuracy']
answer = pipeline('vision-efficient-tuning', 'runs/first')('digit.png')
of_peft = LoRA(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=['q']), OFT(oft_block_size=8), LoHa(r=2)
"""
WRONG = """
from vet import LoRA, build_trainer
accuracy: str = build_trainer(model='configs/quickstart.py').evaluate()['accuracy']
LoRA(lora_r=8)
LoRA(r='8')
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
    assert [error.partition(': ')[0] for error in errors] == ['wrong.py:3', 'wrong.py:4', 'wrong.py:5'], (
        checked.stdout + checked.stderr
    )
    assert '"float"' in errors[0]
