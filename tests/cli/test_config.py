"""vet config: all settings, what a file sets, the page docs/config.md and the JSON Schema."""

import json
from pathlib import Path

import jsonschema
import pytest

from vet.config import load_config
from vet.config.plain import plain
from vet.config.reference import markdown, sections
from vet.config.schema import json_schema
from vet.config.sections import Settings, fields_of
from vet.registry import REGISTRIES

ROOT = Path(__file__).parents[2]
CONFIGS = [*ROOT.glob('configs/*.py'), *ROOT.glob('configs/_base_/*/*.py')]


def rows():
    return {row.path: row for part in sections() for row in part.rows}


def test_every_setting_has_a_meaning_and_its_range():
    found = rows()
    assert {'seed', 'model.backbone', 'train.lr_scheduler.T_max', 'train.stages[i].head_lr'} <= set(found)
    assert all(len(row.meaning) > 20 and row.allowed and row.default for row in found.values())
    assert found['train.ema'].allowed == ['a number above 0 and below 1', 'None']
    assert found['train.precision'].allowed == ["'auto' or 'fp32' or 'bf16' or 'fp8'"]
    assert found['evaluation.dataloader.batch_size_per_gpu'].default == '128'
    assert 'Processes that read' in found['evaluation.dataloader.workers_per_gpu'].meaning
    assert found['model.backbone'].default == 'required'
    assert found['model.tuners'].default == "[dict(type='LinearProbe')]"


def test_the_page_is_up_to_date():
    assert (ROOT / 'docs/config.md').read_text() == markdown(), 'run `make docs`'


def test_all_settings_are_shown(command):
    code, out, _ = command('config')
    assert code == 0
    for path, row in rows().items():
        assert f'  {path} ' in out and row.meaning.split()[-1] in out


def test_what_a_file_sets(command, tmp_path):
    (tmp_path / 'base.py').write_text(
        "model = dict(backbone=dict(type='DigitsViT', lora_length=4))\ndataset = dict(train=dict(type='Digits'))\n"
    )
    (tmp_path / 'own.yaml').write_text(
        '_base_: base.py\ntrain: {max_epochs: 3, dataloader: {workers_per_gpu: 0}}\n'
    )
    code, out, _ = command('config', tmp_path / 'own.yaml', '--cfg-options', 'train.mixup=0.2')
    lines = [line.strip() for line in out.splitlines() if '(set' in line]
    assert code == 0 and len(lines) == 6
    assert 'train.max_epochs = 3    (set; default: 20)' in lines
    assert 'train.dataloader.workers_per_gpu = 0    (set; default: 2)' in lines
    assert 'train.mixup = 0.2    (set; default: 0.0)' in lines
    assert any(line.startswith("model.tuners = [dict(type='LoRA', rank=4)]    (set") for line in lines)


@pytest.mark.parametrize('path', ['models/vitb16_orig_in21k.py', 'recipes/vet.py'])
def test_a_part_of_a_config_is_taken_as_it_is(command, path):
    code, out, _ = command('config', ROOT / 'configs/_base_' / path)
    assert code == 0 and '(set' in out


def test_a_wrong_file_is_refused(fails, tmp_path):
    (tmp_path / 'a.yaml').write_text('train: {max_epoch: 3}\n')
    fails("unknown key in train 'max_epoch'. Did you mean 'max_epochs'", of=['config', tmp_path / 'a.yaml'])
    fails("no.py' does not exist", of=['config', tmp_path / 'no.py'])
    fails('give the config file too', of=['config', '--cfg-options', 'train.mixup=1'])


# The JSON Schema -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def schema():
    return jsonschema.Draft202012Validator(json_schema())


def test_the_schema_knows_every_setting_and_plugin(schema):
    jsonschema.Draft202012Validator.check_schema(schema.schema)
    train = schema.schema['$defs']['Train']['properties']
    assert set(train) == set(fields_of(fields_of(Settings)['train']))
    assert train['mixup'] | dict(description='') == dict(
        type='number', minimum=0, maximum=1000, default=0.0, description=''
    )
    assert 'reaches back over many steps' in train['ema']['description']
    assert 'LoRA' in schema.schema['$defs']['tuner']['properties']['type']['enum']


def test_the_schema_explains_every_argument_of_every_plugin(schema):
    plugins = {
        (registry, plugin['if']['properties']['type']['const']): plugin['then']['properties']
        for registry in REGISTRIES
        for plugin in schema.schema['$defs'][registry]['allOf']
    }
    silent = [
        (*plugin, name)
        for plugin, arguments in plugins.items()
        for name, argument in arguments.items()
        if argument is not True and not argument.get('description')
    ]
    assert not silent
    assert 'rank' in plugins['tuner', 'LoRA']['rank']['description']
    assert not [name for arguments in plugins.values() for name in arguments if not name.isidentifier()]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_project_fits_the_schema(schema, path):
    config = load_config(path)
    sections = {name: plain(config[name], name) for name in config if name in fields_of(Settings)}
    schema.validate(sections)


@pytest.mark.parametrize(
    'wrong',
    [
        dict(train=dict(max_epoch=3)),
        dict(train=dict(mixup=-1)),
        dict(train=dict(precision='fp16')),
        dict(train=dict(stages=[dict(epochs=0)])),
        dict(model=dict(tuners=[dict(type='Lora')])),
        dict(model=dict(tuners=[dict(type='LoRA', ranks=3)])),
        dict(model=dict(tuners=[dict(type='LoRA', rank=0)])),
        dict(model=dict(backbone=dict(type='DigitsViT', loral_length=1))),
        dict(model=dict(head=dict(type='Linear', dropout=1))),
        dict(train=dict(optimizer=dict(type='AdamW', lr=-1))),
    ],
)
def test_the_schema_finds_what_is_wrong(schema, wrong):
    assert not schema.is_valid(wrong)


def test_the_schema_is_printed(command):
    code, out, _ = command('config', '--json-schema')
    assert code == 0 and json.loads(out) == json_schema()
