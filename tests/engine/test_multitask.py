"""Training several tasks: one task per batch, a result for each, a folder for all; from one checkpoint
or from two.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.runs import build
from vet import pipeline
from vet.backbones.digits import ARCHITECTURE
from vet.builders import build_trainer, find_config
from vet.datasets.digits import Digits
from vet.engine.feed.batches import Order
from vet.errors import UserError
from vet.hub.export import export
from vet.registry import BACKBONES

TASKS = {
    task: {split: dict(type='Digits', split=split, digits=digits) for split in ('train', 'test')}
    for task, digits in dict(high=[7, 8, 9], middle=[5, 6]).items()
}
DATA = {
    f'dataset.{split}': dict(
        type='MultiTask', tasks={task: entries[split] for task, entries in TASKS.items()}
    )
    for split in ('train', 'test')
}
OPTIONS = DATA | {
    'model.shared': r'.*\.A',
    'train.max_epochs': 6,
    'train.accumulate': 2,
    'train.mixup': 0.2,
    'train.optimizer': dict(type='AdamW', lr=1e-2),
}


def network(checkpoint):
    """The config of a ViT like DigitsViT, with the weights of a file."""
    return dict(
        type='timm',
        name='vit_tiny_patch16_224',
        pretrained=False,
        checkpoint=str(checkpoint),
        kwargs=ARCHITECTURE,
        preprocessing=dict(size=8, mean=(0.4,) * 3, std=(0.5,) * 3, crop_pct=1.0),
    )


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A run of two tasks with two checkpoints, its folder and its summary."""
    folder = tmp_path_factory.mktemp('multitask')
    weights = BACKBONES.build(dict(type='DigitsViT')).network.state_dict()
    save_file(
        {name: value + 0.01 * torch.randn_like(value) for name, value in weights.items()},
        folder / 'other.safetensors',
    )
    tasks = dict(
        middle=dict(backbone=network(folder / 'other.safetensors'), head=dict(type='Linear', dropout=0.1))
    )
    trainer = build(folder / 'run', **OPTIONS | {'model.tasks': tasks})
    return trainer, trainer.train()


def test_both_tasks_are_learned(finished):
    trainer, summary = finished
    accuracy = {task: summary[f'{task}/accuracy'] for task in TASKS}
    assert summary['accuracy'] == pytest.approx(sum(accuracy.values()) / 2)
    assert all(
        value > summary['before'][f'{task}/accuracy'] + 0.2 and value > 0.75
        for task, value in accuracy.items()
    )
    assert summary['train_images'] == sum(len(Digits(digits=digits)) for digits in ([7, 8, 9], [5, 6]))
    one, two = (part.backbone.identity['sha256'] for part in trainer.model.tasks.values())
    assert one != two


def test_the_folder_is_the_model(finished):
    trainer, _ = finished
    output, image = trainer.folder.output, Digits(split='test', digits=[5, 6])[0][0]
    for task, classes in (('high', ['7', '8', '9']), ('middle', ['5', '6'])):
        classify = pipeline('vision-efficient-tuning', output, task=task)
        result = classify(image, topk=3)
        assert classify.classes == classes and set(result['labels']) <= set(classes)
        assert (
            result
            == trainer.predict([image], 3, task)[0]
            == pipeline('vision-efficient-tuning', output)(image, 3, task=task)
        )
    names = set(load_file(output / 'tuner.safetensors'))
    assert {name for name in names if 'blocks.0.attn.qkv' in name} == {
        'tuners.0.deltas.blocks.0.attn.qkv.A',
        'tuners.high.0.deltas.blocks.0.attn.qkv.B',
        'tuners.middle.0.deltas.blocks.0.attn.qkv.B',
    }
    assert (
        json.loads((output / 'configuration.json').read_text())['model']['tasks']['middle']['head']['dropout']
        == 0.1
    )
    assert pipeline(task='vision-efficient-tuning', model=output).classes == {
        'high': ['7', '8', '9'],
        'middle': ['5', '6'],
    }


def test_a_folder_of_tasks_is_trained_further(finished, tmp_path):
    trainer, summary = finished
    again = build_trainer(
        model=str(trainer.folder.output),
        work_dir=tmp_path,
        device='cpu',
        cfg_modify_fn=lambda config: config.merge_from_dict({'model.finetune': False}),
    )
    assert again.evaluate() == {name: summary[name] for name in again.evaluate()}
    assert find_config(trainer.folder.output).model.tasks.middle.backbone.checkpoint.endswith(
        'other.safetensors'
    )


@pytest.mark.slow
def test_one_task_s_backbone_is_exported(finished, tmp_path):
    trainer, _ = finished
    export(trainer.folder.output, tmp_path / 'one.safetensors', task='middle')
    x = torch.randn(2, 3, *trainer.model.for_task('middle').backbone.preprocessing.size)
    plain = BACKBONES.build(network(tmp_path / 'one.safetensors'))
    tuned = trainer.model.for_task('middle').eval().backbone
    assert torch.allclose(plain.eval()(x), tuned(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match='unknown task None'):
        export(trainer.folder.output, tmp_path / 'none.safetensors')


def test_a_batch_has_one_task_and_an_epoch_every_image():
    order = Order(23, 4, 2, seed=1, parts=(13, 10))
    assert (order.batches, order.steps) == (4 + 3, 4)
    for epoch in range(2):
        batches = [[index for _, index, _ in batch] for batch in order.keys(epoch)]
        assert all(len({index < 13 for index in batch}) == 1 for batch in batches)
        assert sorted(index for batch in batches for index in batch) == list(range(23))
        sizes = [sum(map(len, batches[i : i + 2])) for i in range(0, 7, 2)]
        assert [order.step_size(epoch * 4 + step) for step in range(4)] == sizes
    assert list(order.keys(0)) != list(order.keys(1)) and list(order.keys(1, 2)) == list(order.keys(1))[4:]
    tasks = [batch[0][1] < 13 for batch in order.keys(0)]
    assert tasks != sorted(tasks) and tasks != sorted(tasks)[::-1]


@pytest.mark.slow
def test_a_stopped_run_ends_the_same(finished, tmp_path):
    short = OPTIONS | {'train.max_epochs': 2, 'train.checkpoint': dict(every_steps=3, keep=9)}
    whole = build(tmp_path / 'whole', **short)
    whole.train()
    checkpoint = whole.folder.checkpoints / 'step-00000003'
    again = build(tmp_path / 'again', resume=str(checkpoint), **short)
    again.train()
    one, two = (load_file(run.folder.output / 'tuner.safetensors') for run in (whole, again))
    assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


def test_a_part_of_every_task_is_held_out(tmp_path):
    trainer = build(tmp_path, **OPTIONS | {'evaluation.select': 'best', 'evaluation.holdout': 0.2})
    assert {task: len(part) for task, part in trainer.data['val'].tasks.items()} == {
        task: round(0.2 * len(Digits(digits=digits)))
        for task, digits in (('high', [7, 8, 9]), ('middle', [5, 6]))
    }


@pytest.mark.parametrize(
    'options, text',
    [
        ({'model.tasks': dict(low=dict())}, "unknown task in model.tasks 'low'"),
        (
            {'model.tasks': dict(high=dict(hed=dict()))},
            "unknown key in model.tasks.high 'hed'. Did you mean 'head'",
        ),
        (
            {'dataset.train': dict(type='MultiTask', tasks={'a.b': TASKS['high']['train']})},
            r"tasks has the names \['a.b'\]; allowed",
        ),
        (
            {'dataset.train': dict(type='MultiTask', tasks={})},
            r'tasks has the names \[\]; allowed: one or more',
        ),
        (
            {
                'dataset.test': dict(
                    type='MultiTask', tasks={'high': TASKS['high']['test'], 'middle': TASKS['high']['test']}
                )
            },
            r'dataset.test \(middle\) has other classes \(3: 7, 8, 9, …\) than dataset.train \(middle\) \(2: 5, 6, …\)',
        ),
        (
            {'dataset.test': TASKS['high']['test']},
            r'dataset.test has other classes \(3: 7, 8, 9, …\) than dataset.train \(2: high, middle',
        ),
    ],
)
def test_refusals(tmp_path, options, text):
    with pytest.raises(UserError, match=text):
        build(tmp_path, **OPTIONS | options)
