"""vet list, and the console script: names with one line each, the roles of a backbone, and every
command under one name.
"""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vet.arguments import arguments_of, text_of
from vet.cli.list import KINDS
from vet.errors import UnknownNameError
from vet.registry import DATASETS, LOSSES, TUNERS, parameters_of

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


def test_the_arguments_of_a_plugin(command):
    code, out, _ = command('list', 'tuners', 'LoRA')
    assert code == 0 and out.startswith('tuner LoRA\n\nh = W x + (alpha / rank) B A x')
    about = json.loads(command('list', 'tuners', 'LoRA', '--json')[1])
    assert list(about['arguments']) == list(inspect.signature(TUNERS.find('LoRA')).parameters)
    assert about['arguments']['dropout'] == dict(
        allowed=['a number at least 0 and below 1'],
        default='0.0',
        required=False,
        meaning='drops inputs of the update, in training. Only Linear layers and plain convolutions take dropout.',
    )
    about = json.loads(command('list', 'heads', 'Linear', '--json')[1])
    assert about['arguments']['num_classes']['default'] == 'the number of classes of the dataset'
    assert json.loads(command('list', 'backbones', 'timm', '--json')[1])['arguments']['name']['required']


@pytest.mark.parametrize('kind', list(KINDS))
def test_every_plugin_of_every_registry_shows_its_arguments(kind):
    registry = KINDS[kind]
    for name in registry.names():
        plugin = registry.find(name)
        shown = [argument.name.lstrip('*') for argument in arguments_of(registry, name)]
        assert shown == list(parameters_of(plugin))
        text = text_of(registry, name)
        assert '.. math::' not in text and 'ase class' not in text and '`tune(site)`' not in text
        assert len(text) > 10 or not plugin.__module__.startswith('vet.')


@pytest.mark.parametrize('kind', list(KINDS))
def test_every_argument_has_a_meaning(kind):
    registry = KINDS[kind]
    silent = {
        f'{name}.{argument.name}'
        for name in registry.names()
        for argument in arguments_of(registry, name)
        if not argument.meaning
    }
    assert silent == set()


def test_the_meanings_of_base_classes_and_of_names_of_peft_are_shown(command):
    code, out, _ = command('list', 'tuners', 'LoRA')
    assert code == 0 and "lora_alpha: PEFT's name of `alpha`." in out
    assert "\nat: a role ('attn.qkv'), a sliced role" in out
    about = json.loads(command('list', 'heads', 'TipAdapter', '--json')[1])['arguments']
    assert about['prompts']['meaning'].startswith('see Text. texts with {} for the class name')
    about = json.loads(command('list', 'optimizers', 'lion', '--json')[1])['arguments']
    assert about['maximize']['meaning'] == 'True climbs instead of descending.'


def test_the_arguments_of_a_bare_module_are_none(command, fails):
    code, out, _ = command('list', 'losses', 'L1')
    assert code == 0 and out.endswith('It has no arguments.\n') and 'neural network modules' not in out
    with pytest.raises(UnknownNameError, match="option of loss 'L1'"):
        LOSSES.build(dict(type='L1', delta=1))
    assert json.loads(command('list', 'transforms', 'Lambda', '--json')[1])['arguments'].keys() == {'lambd'}


def test_choices_are_shown(command):
    rows = json.loads(command('list', 'tuners', 'LoRA', '--json')[1])['arguments']
    assert rows['variant']['allowed'] == [
        "'plain' or 'rslora' or 'dora' or 'pissa' or 'vera' or 'olora' or 'eva' or 'corda' or 'lora_ga'"
    ]
    assert rows['parts']['allowed'] == ['a text, letters of "qkv", each once', 'None']
    assert (
        "'kitti'"
        in json.loads(command('list', 'datasets', 'VTAB', '--json')[1])['arguments']['task']['allowed'][0]
    )


def test_a_tuner_of_ones_own(command, tmp_path):
    (tmp_path / 'tuner_of_test_list.py').write_text(
        'from typing import Annotated\nfrom annotated_types import Interval\nfrom vet.core.tuner import Tuner\n'
        'from vet.registry import TUNERS\n\n\n@TUNERS.register_module()\nclass OfTestList(Tuner):\n'
        '    """Does this and that.\n\n    strength: of it."""\n\n'
        '    def __init__(self, strength: Annotated[int, Interval(ge=1, le=9)], kind="a", **more):\n'
        '        super().__init__("norm")\n'
    )
    file = tmp_path / 'tuner_of_test_list.py'
    try:
        code, out, _ = command('list', 'tuners', 'OfTestList', '--import', file)
    finally:
        TUNERS.module_dict.pop('OfTestList', None)
    rows = [' '.join(line.split()) for line in out.splitlines()]
    assert code == 0 and 'Does this and that.' in rows and 'strength: of it.' in rows
    assert 'strength required a whole number at least 1 and at most 9' in rows
    assert "kind 'a' anything" in rows and any(row.startswith('**more') for row in rows)


def test_roles_of_a_backbone(command):
    rows = json.loads(command('list', 'roles', '--backbone', 'DigitsViT', '--json')[1])
    assert rows['attn.qkv'] == (
        "6, such as 'blocks.0.attn.qkv' (Linear, which takes (17, 64) per image); 25 % of the weights, "
        '6 of 6 attention layers, 0 of 13 norms, 6 of 6 blocks'
    )
    assert json.loads(command('list', 'roles', 'DigitsViT', '--json')[1]) == rows
    assert rows['norm'].startswith('13, ') and rows['backbone'].startswith('1, ') and 'head' not in rows
    assert "'layer1.0' (BasicBlock" in command('list', 'roles', '--backbone', 'resnet18')[1]


def test_timm_models_by_pattern(command):
    rows = json.loads(command('list', 'backbones', '--filter', 'vit_tiny_*', '--json')[1])
    assert {'timm', 'torchvision', 'DigitsViT', 'vit_tiny_patch16_224'} <= set(
        rows
    ) and 'resnet18' not in rows


def test_refusals(fails):
    fails("unknown kind of plugin 'tuner'. Did you mean 'tuners'", of=['list', 'tuner'])
    fails("unknown tuner 'Lora'. Did you mean 'LoRA'", of=['list', 'tuners', 'Lora'])
    fails("unknown optimizer 'AdamWW'. Did you mean 'AdamW'", of=['list', 'optimizers', 'AdamWW'])
    fails("unknown torchvision classifier 'block'", of=['list', 'roles', 'block'])
    fails('name the backbone, as in `vet list roles NAME`', of=['list', 'roles'])
    fails("unknown torchvision classifier 'vit_tin'", of=['list', 'roles', '--backbone', 'vit_tin'])


@pytest.mark.parametrize(
    'arguments, code, text',
    [
        (['train', '--help'], 0, 'usage: vet train'),
        pytest.param(['list', 'heads'], 0, 'Linear', marks=pytest.mark.slow),
        pytest.param(['tuning'], 2, "unknown command 'tuning'", marks=pytest.mark.slow),
        pytest.param(
            ['predict', 'nowhere', 'http://127.0.0.1/x.png'],
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
