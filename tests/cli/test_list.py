"""vet list, and the console script: names with one line each, the roles of a backbone, and every
command under one name.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vet.registry import DATASETS, TUNERS

ROOT = Path(__file__).parents[2]


def test_every_plugin_has_a_line(command):
    for kind, registry in (('tuners', TUNERS), ('datasets', DATASETS)):
        code, out, _ = command('list', kind, '--json')
        rows = json.loads(out)
        assert code == 0 and sorted(rows) == registry.names()
        assert all(
            len(rows[name]) > 10 for name in rows if registry.find(name).__module__.startswith('vet.')
        ), rows
    assert json.loads(command('list', 'tuners', '--json')[1])['LoRA'].startswith(
        'h = W x + (alpha / rank) B A x'
    )


def test_roles_of_a_backbone(command):
    rows = json.loads(command('list', 'roles', '--backbone', 'DigitsViT', '--json')[1])
    assert rows['attn.qkv'] == "6, such as 'blocks.0.attn.qkv' (Linear, which takes (17, 64) per image)"
    assert rows['norm'].startswith('13, ') and rows['backbone'].startswith('1, ') and 'head' not in rows
    assert "'layer1.0' (BasicBlock" in command('list', 'roles', '--backbone', 'resnet18')[1]


def test_timm_models_by_pattern(command):
    rows = json.loads(command('list', 'backbones', '--filter', 'vit_tiny_*', '--json')[1])
    assert {'timm', 'torchvision', 'DigitsViT', 'vit_tiny_patch16_224'} <= set(
        rows
    ) and 'resnet18' not in rows


def test_refusals(fails):
    fails("unknown kind of plugin 'tuner'. Did you mean 'tuners'", of=['list', 'tuner'])
    fails('say which one with --backbone NAME', of=['list', 'roles'])
    fails("unknown torchvision classifier 'vit_tin'", of=['list', 'roles', '--backbone', 'vit_tin'])


@pytest.mark.parametrize(
    'arguments, code, text',
    [
        (['train', '--help'], 0, 'usage: vet train'),
        pytest.param(['list', 'heads'], 0, 'Linear', marks=pytest.mark.slow),
        pytest.param(['tune'], 2, "invalid choice: 'tune'", marks=pytest.mark.slow),
        pytest.param(
            ['predict', 'nowhere', 'x.png'],
            2,
            "the model folder 'nowhere' does not exist",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_console_script(arguments, code, text):
    script = 'import sys; from vet.cli.vet import main; main()'
    done = subprocess.run(
        [sys.executable, '-c', script, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == code and text in done.stdout + done.stderr and 'Traceback' not in done.stderr, (
        done.stderr
    )
