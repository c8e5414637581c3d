"""docs/peft.md: both programs run as they stand, and have as many lines as the page says."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

PAGE = (Path(__file__).parents[2] / 'docs' / 'peft.md').read_text()


def program(side):
    [code] = re.findall(rf'<!-- task: {side} -->\n```python\n(.*?)```', PAGE, re.DOTALL)
    return code


@pytest.mark.parametrize('side', ['peft', 'vet'])
def test_the_page_counts_its_lines(side):
    [said] = re.findall(rf'<!-- lines: {side} -->(\d+)', PAGE)
    assert int(said) == len([line for line in program(side).splitlines() if line.strip()])


@pytest.mark.parametrize('side', ['peft', 'vet'])
@pytest.mark.slow
def test_a_program_of_the_page_runs(side, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save('photo.png')
    steps = []

    def train(model):
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3)
        model(torch.randn(2, 3, 224, 224)).square().sum().backward()
        optimizer.step()
        steps.append(len(parameters))

    torch.manual_seed(0)
    seeded = program(side).replace('net = timm', 'torch.manual_seed(0)\nnet = timm')
    found = dict(train=train, torch=torch)
    exec(compile(seeded, 'docs/peft.md', 'exec'), found)
    assert found['label'] in ('daisy', 'rose', 'tulip')
    assert steps == [2 * 12 + 2]  # LoRA of 12 attentions, and the classifier
