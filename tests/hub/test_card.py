"""The model card: what it says is what the folder holds, and huggingface_hub reads it."""

import json
import re
import shutil

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import vet
from tests.hub.sealed import seal
from vet.errors import DataError
from vet.hub import push_to_hub
from vet.hub.card import model_card


@pytest.fixture
def edited(trainer, tmp_path):
    """edited(key=value, …): the folder of a quickstart with another configuration; a dict is merged,
    None leaves the key out.
    """

    def edit(**changes):
        folder = tmp_path / f'{len(list(tmp_path.iterdir()))}'
        shutil.copytree(trainer.folder.output, folder)
        configuration = json.loads((folder / 'configuration.json').read_text())
        for key, value in changes.items():
            merged = isinstance(value, dict) and isinstance(configuration[key], dict)
            configuration[key] = configuration[key] | value if merged else value
        (folder / 'configuration.json').write_text(
            json.dumps({key: value for key, value in configuration.items() if value is not None})
        )
        return folder

    return edit


def read(text):
    """What the hub's own reader makes of a card, and the rows of its tables, which are literal text."""
    card = ModelCard(text)
    assert yaml.safe_load(text.split('---\n')[1]) == card.data.to_dict()
    return card.data, dict(re.findall(r'^\| ([^|]+) \| `(.*)` \|$', card.text, re.MULTILINE))


def timm(**settings):
    return dict(backbone=dict(type='timm', pretrained=True, sha256='ab' * 32, **settings))


def test_the_quickstart_s_card(trainer):
    text = model_card(trainer.folder.output, 'owner/five-digits')
    data, rows = read(text)
    assert (data.library_name, data.pipeline_tag, data.datasets, data.metrics) == (
        'vet',
        'image-classification',
        ['Digits'],
        ['accuracy'],
    )
    assert (
        data.tags == ['vet', 'vision-efficient-tuning', 'LoRA']
        and data.license is None
        and data.base_model is None
    )
    [result] = data.eval_results
    assert (
        data.model_name,
        result.task_type,
        result.dataset_name,
        result.dataset_split,
        result.metric_type,
        result.metric_value,
    ) == ('five-digits', 'image-classification', 'Digits', 'test', 'accuracy', trainer.summary['accuracy'])
    count, path = trainer.model.count(), trainer.folder.output / 'tuner.safetensors'
    assert rows['saved numbers'] == f'tuners {count["tuners"]:,}, head {count["head"]:,}'
    assert rows['tuner.safetensors'] == f'{path.stat().st_size:,} bytes'
    assert rows['sha256'] == trainer.model.backbone.identity['sha256'] and rows['vet'] == vet.__version__
    assert (
        rows['classes'] == '5: 5, 6, 7, 8, 9'
        and rows['backbone'] == 'DigitsViT()'
        and rows['tuners'] == 'LoRA(rank=8)'
    )
    assert rows['accuracy'] == f'{trainer.summary["accuracy"]:.4f}'
    train = trainer.settings.train
    assert (
        rows['optimizer']
        == f'AdamW(lr={train.optimizer["lr"]}, weight_decay={train.optimizer["weight_decay"]})'
    )
    assert rows['epochs'] == '1' and rows['images per batch and process'] == '64' and rows['seed'] == '0'
    assert rows['schedule'].startswith('CosineAnnealingLR(T_max=1') and rows['training transform'].startswith(
        'RandomAffine(degrees=8'
    )
    assert not {'mixup', 'EMA', 'learning rate of the head', 'stages'} & set(rows)
    assert (
        '# five-digits\n' in text
        and 'LoRA on DigitsViT.' in text
        and "pipeline('vision-efficient-tuning', 'owner/five-digits')" in text
    )


def test_its_python_runs_as_it_stands(trainer, tmp_path, monkeypatch):
    url = push_to_hub(trainer.folder.output, tmp_path / 'remote')
    trainer.data['test'][0][0].save(tmp_path / 'image.png')
    [code] = re.findall(r'```python\n(.*?)```', (tmp_path / 'remote/README.md').read_text(), re.DOTALL)
    assert url.removeprefix('file://') in code
    monkeypatch.chdir(tmp_path)
    *imports, call = code.replace('image.jpg', 'image.png').strip().splitlines()
    names = {}
    exec('\n'.join(imports), names)
    assert set(eval(call, names)) == {'scores', 'labels'}


@pytest.mark.parametrize(
    'backbone, base',
    [
        (
            dict(name='vit_base_patch16_224.orig_in21k', tag='orig_in21k'),
            ['timm/vit_base_patch16_224.orig_in21k'],
        ),
        (dict(name='resnet18', tag='a1_in1k'), ['timm/resnet18.a1_in1k']),
        # whose, is not said
        (dict(name='vit_base_patch16_224.orig_in21k', checkpoint='/mine/weights.safetensors'), None),
        (dict(name='no_such_net'), None),
        (dict(type='torchvision', name='resnet18'), None),
    ],
)
def test_the_base_model_is_named_where_it_is_known(edited, backbone, base):
    text = model_card(edited(model={'backbone': timm(name='')['backbone'] | backbone}))
    data, rows = read(text)
    assert data.base_model == base and data.get('base_model_relation') == (base and 'adapter')
    assert (
        rows['backbone'] == f"{backbone.get('type', 'timm')}(name='{backbone['name']}')"
        and '/mine' not in text
    )


def test_several_tasks(edited):
    tasks = dict(
        low=timm(name='resnet18') | dict(head=dict(type='Linear')),
        high=timm(name='resnet18') | dict(head=dict(type='MLP')),
    )
    data = dict(
        type='MultiTask',
        tasks=dict(low=dict(type='Digits', split='test'), high=dict(type='ImageFolder', path='my pets')),
    )
    folder = edited(
        model=dict(tasks=tasks),
        dataset=dict(train=data, test=data),
        classes=dict(low=['1', '2'], high=['cat']),
        preprocessing=None,
        metrics={'accuracy': 0.5, 'low/accuracy': 0.25, 'high/accuracy': 0.75},
    )
    text = model_card(folder, 'owner/two')
    card, rows = read(text)
    assert (
        card.datasets == ['Digits', 'my-pets']
        and card.base_model == ['timm/resnet18.a1_in1k']
        and card.metrics == ['accuracy']
    )
    assert sorted((result.dataset_name, result.metric_value) for result in card.eval_results) == [
        ('Digits', 0.25),
        ('my-pets', 0.75),
    ]
    assert (rows['accuracy'], rows['low/accuracy']) == ('0.5000', '0.2500')
    assert (rows['low classes'], rows['high classes'], rows['high head']) == ('2: 1, 2', '1: cat', 'MLP()')
    assert "pipeline('vision-efficient-tuning', 'owner/two', task='low')" in text


def test_nothing_is_said_of_what_is_not_known(edited):
    folder = edited(
        metrics=None,
        dataset=None,
        train=None,
        evaluation=None,
        seed=None,
        vet_version=None,
        preprocessing=None,
    )
    text = model_card(folder)
    data, rows = read(text)
    assert (data.datasets, data.metrics, data.eval_results, data.model_name) == (None,) * 4
    assert 'Not measured.' in text and set(rows) == {
        'backbone',
        'sha256',
        'head',
        'classes',
        'tuners',
        'saved numbers',
        'tuner.safetensors',
    }
    given = dict(type='given')
    data, rows = read(model_card(edited(dataset=dict(train=given, test=given))))
    assert data.datasets is None and data.eval_results is None and data.metrics == ['accuracy']
    assert 'trained on' not in rows and re.fullmatch(r'0\.\d{4}', rows['accuracy'])


@pytest.mark.parametrize('name', ['a|b', 'a`b', 'line\nbreak', '---', "it's: #1", '{front}', '<b>'])
def test_any_name_is_literal_text(edited, name):
    changes = dict(
        classes=[name, 'b'],
        dataset=dict(train=dict(type='ImageFolder', path=name), test=dict(type='ImageFolder', path=name)),
    )
    data, rows = read(model_card(edited(**changes), license='mit'))
    shown = ' '.join(name.split()).replace('`', "'").replace('|', '\\|')
    assert rows['classes'] == f'2: {shown}, b' and data.license == 'mit'
    assert len(data.datasets) == 1 and re.fullmatch(r'[\w.-]+', data.datasets[0])


def test_whole_numbers_are_not_counted_and_many_classes_are_cut(edited):
    folder = edited(classes=[str(i) for i in range(1000)])
    tensors = load_file(folder / 'tuner.safetensors')
    seal(folder, tensors | {'tuners.0.index': torch.arange(7), 'tuners.0.extra': torch.zeros(2, 3)})
    _, rows = read(model_card(folder))
    assert rows['saved numbers'] == f'tuners {12_288 + 6:,}, head 325'
    assert rows['classes'].startswith('1000: 0, 1,') and rows['classes'].endswith('19, …')


def test_what_cannot_be_read_has_no_card(edited, tmp_path):
    with pytest.raises(DataError, match='is no model folder'):
        model_card(tmp_path)
    with pytest.raises(DataError, match="asks for 'custom_imports'"):
        model_card(edited(custom_imports=['x']))
    folder = edited()
    (folder / 'tuner.safetensors').write_bytes(b'no tensors')
    with pytest.raises(DataError, match='tuner.safetensors.* cannot be read'):
        model_card(folder)
