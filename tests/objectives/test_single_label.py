"""SingleLabel computes what vet computed before objectives: cross-entropy, softmax and the best class."""

import pytest
import torch
import torch.nn.functional as F

from tests.engine.runs import ended, small
from vet.core.objective import build_objective
from vet.registry import LOSSES

VARIANTS = {
    'fp32': {},
    'bf16': {'train.precision': 'bf16'},
    'recomputed blocks': {'train.gradient_checkpointing': True},
    'kept images': {'train.cache_images': True},
    'kept features': {
        'train.cache_features': True,
        'model.tuners': [dict(type='LoRA', rank=4, at='attn.qkv[-2:]')],
    },
    'mixtures and an average': {
        'train.mixup': 0.4,
        'train.cutmix': 1.0,
        'train.ema': 0.8,
        'train.label_smoothing': 0.1,
    },
    'AdaLoRA': {'model.tuners': [dict(type='AdaLoRA', rank=4, target=2)]},
}
SLOW = ('recomputed blocks', 'kept images', 'AdaLoRA', 'bf16', 'kept features')


class Plain:
    """The loss that vet had before: one call of torch."""

    def __init__(self, label_smoothing=0.0):
        self.label_smoothing = label_smoothing

    def __call__(self, logits, targets):
        return F.cross_entropy(logits, targets, reduction='none', label_smoothing=self.label_smoothing)


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in VARIANTS]
)
def test_the_loss_is_torchs_cross_entropy_bit_for_bit(tmp_path, monkeypatch, name):
    monkeypatch.setenv('VET_CACHE_DIR', str(tmp_path / 'cache'))
    monkeypatch.setitem(LOSSES.module_dict, 'Plain', Plain)
    options = {'train.max_epochs': 1, **VARIANTS[name]}
    expected = ended(small(tmp_path / 'plain', **options, **{'train.loss': dict(type='Plain')}))
    named = {'model.objective': dict(type='SingleLabel'), 'train.loss': dict(type='CrossEntropyLoss')}
    assert ended(small(tmp_path / 'default', **options)) == expected
    assert ended(small(tmp_path / 'named', **options, **named)) == expected


def test_the_scores_are_softmax(tmp_path):
    trainer = small(tmp_path / 'run', **{'train.max_epochs': 1})
    trainer.train()
    images = torch.stack([trainer._view[None](trainer.data['test'][i][0]) for i in range(3)])
    with torch.no_grad():
        scores = trainer.model.eval()(images).softmax(1)
    given = trainer.predict([trainer.data['test'][i][0] for i in range(3)], topk=2)
    for answer, row in zip(given, scores):
        assert answer['scores'] == row.topk(2).values.tolist()
        assert answer['labels'] == [trainer.model.classes[i] for i in row.topk(2).indices]
    assert 'objective' not in trainer.folder.output.joinpath('configuration.json').read_text()


@pytest.mark.parametrize('kind', ['SingleLabel', 'Ordinal', 'Embedding'])
def test_made_up_images_of_many_classes_fit_into_memory(kind):
    objective = build_objective(dict(type=kind), [f'class {number}' for number in range(3000)])
    scores, labels = objective.examples()
    outputs, targets = objective.examples_for_loss()
    assert len(scores) == len(labels) == len(outputs) == len(targets) == 1000
