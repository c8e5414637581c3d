"""What is reported is what is saved: with dropout, an average and batch norms, whose train mode differs
from their eval mode.
"""

import argparse

import numpy as np
import pytest
import torch

from tests.engine.runs import SmallDigits, config
from vet import build_trainer, pipeline
from vet.cli.test import evaluate
from vet.engine.saving.checkpoint import list_checkpoints, load_checkpoint
from vet.engine.saving.log import read_log
from vet.hub.model_folder import load_model

RESNET = dict(
    type='timm',
    name='resnet18',
    pretrained=False,
    preprocessing=dict(size=16),
    kwargs=dict(layers=(1, 1, 1, 1), channels=(8, 16, 16, 32)),
)
DIGITS = {split: dict(type='Digits', split=split, digits=[5, 6, 7, 8, 9]) for split in ('train', 'test')}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A trainer that has trained with head dropout, an average of long memory and thawed batch norms;
    and its summary.
    """
    made = config(
        **{
            'train.max_epochs': 3,
            'train.ema': 0.99,
            'train.optimizer': dict(type='AdamW', lr=1e-2),
            'evaluation.before': False,
            'train.transform': [dict(type='Resize', size=[16, 16])],
            'dataset': DIGITS | dict(val=DIGITS['test']),
        }
    )
    made['model'] = dict(
        backbone=RESNET, tuners=[dict(type='Full')], head=dict(type='MLP', hidden=32, dropout=0.5)
    )
    trainer = build_trainer(model=made, work_dir=tmp_path_factory.mktemp('modes') / 'run', device='cpu')
    return trainer, trainer.train()


def accuracy(answers, data):
    return float(
        np.mean([answer['labels'][0] == data.classes[label] for answer, label in zip(answers, data.targets)])
    )


def pictures(data):
    return [data[i][0] for i in range(len(data))]


def test_summary_test_predict_and_folder_agree(run):
    trainer, summary = run
    data, folder = trainer.data['test'], trainer.folder.path
    asked = dict(imports=[], cfg_options=None, device='cpu', data_root=None, backbone=None, knn=None)
    asked['split'] = 'test'
    seen = pictures(data)
    found = dict(
        evaluate=trainer.evaluate()['accuracy'],
        command=evaluate(argparse.Namespace(model=str(folder), **asked))['accuracy'],
        predict=accuracy(trainer.predict(seen), data),
        pipeline=accuracy(pipeline(model=folder / 'output')(seen, topk=1), data),
    )
    assert 0.3 < summary['accuracy'] < 1
    assert found == dict.fromkeys(found, pytest.approx(summary['accuracy'], abs=1e-12))


def test_scores_agree_though_the_trainers_model_is_in_train_mode(run):
    """`predict` after train() does not depend on the mode in which anybody left the model, nor on the
    other images.
    """
    trainer, _ = run
    seen = pictures(trainer.data['test'])[:7]
    expected = pipeline(model=trainer.folder.output)(seen, topk=5)
    for mode in (True, False):
        trainer.model.train(mode)
        for answers in (trainer.predict(seen, 5), [trainer.predict([image], 5)[0] for image in seen]):
            for one, other in zip(answers, expected, strict=True):
                assert one['labels'] == other['labels'] and one['scores'] == pytest.approx(
                    other['scores'], abs=1e-5
                )


def test_predict_right_after_train(tmp_path):
    """The training leaves the model in train mode, as torch does."""
    made = config(**{'train.max_epochs': 1, 'evaluation.before': False, 'dataset.test': None})
    made['model']['head'] = dict(type='MLP', hidden=32, dropout=0.9)
    trainer = build_trainer(
        model=made, work_dir=tmp_path / 'run', device='cpu', train_dataset=SmallDigits('train')
    )
    trainer.train()
    seen = pictures(SmallDigits('test'))[:9]
    assert trainer.predict(seen, 5) == trainer.predict(seen, 5)
    first, expected = trainer.predict(seen, 1), pipeline(model=tmp_path / 'run' / 'output')(seen, topk=1)
    assert [one['labels'] for one in first] == [other['labels'] for other in expected]


def test_validation_is_of_the_weights_that_are_saved(run):
    """`val` and `test` are the same images here: the last validation is the test result. The raw
    weights would give another.
    """
    trainer, summary = run
    validated = [
        record['val_accuracy'] for record in read_log(trainer.folder.path) if 'val_accuracy' in record
    ]
    assert len(validated) == 3 and validated[-1] == summary['accuracy']
    saved = load_model(trainer.folder.output).trained_state()
    held = trainer.model.trained_state()
    assert all(torch.equal(saved[name], held[name]) for name in held)
    _, parts = load_checkpoint(list_checkpoints(trainer.folder.checkpoints)[-1])
    trainer.model.load_trained_state(parts['model'])
    assert trainer.evaluate()['accuracy'] != summary['accuracy']
    trainer.model.load_trained_state(saved)


def test_an_evaluation_leaves_every_mode(run):
    trainer, _ = run
    trainer.model.train()
    modes = [module.training for module in trainer.model.modules()]
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.evaluate()
    assert [module.training for module in trainer.model.modules()] == modes and any(modes)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
