"""Batch norms that train: a batch of one image behind a pool, in all networks that have a norm there."""

import pytest
import torch
from torch import nn

from tests.engine.runs import SmallDigits, config
from tests.engine.test_learner import batches_of, make, step
from tests.nets import images, timm_net
from vet import build_trainer
from vet.engine.batch_norms import single_values_normed
from vet.engine.feed.batches import Order

SPLIT = dict(layers=(1, 1, 1, 1), channels=(8, 8, 16, 16), stem_width=8)


def norms_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}


def test_one_image_behind_a_pool():
    """A ResNeSt's last batch: torch refuses it; here such a norm uses its running statistics, and
    leaves them.
    """
    learner = make('Full', 'resnet', order=Order(8, 8, 1, seed=0), optimizer=dict(type='SGD', lr=1e-3))
    [batch] = batches_of(1)
    norms = norms_of(learner.model)
    before = {name: norm.running_mean.clone() for name, norm in norms.items()}
    step(learner, [batch])
    left = [name for name, norm in norms.items() if norm.running_mean.equal(before[name])]
    # 32 / 32 = 1 pixel there
    assert left and all('layer4' in name for name in left) and len(left) < len(norms)
    assert all(norm.num_batches_tracked == (name not in left) for name, norm in norms.items())


def test_it_is_what_eval_gives_and_more_images_are_untouched():
    norm = nn.BatchNorm2d(4)
    norm(torch.randn(9, 4, 5, 5))
    one, more = torch.randn(1, 4, 1, 1, requires_grad=True), torch.randn(2, 4, 1, 1)
    expected, mean = norm.eval()(one), norm.running_mean.clone()
    norm.train()
    with pytest.raises(ValueError, match='more than 1 value'):
        norm(one)
    with single_values_normed(norm):
        given = norm(one)
        assert given.equal(expected) and norm.running_mean.equal(mean) and norm.training
        given.sum().backward()
        several = norm(more)
        assert not norm.running_mean.equal(mean)
    assert one.grad is not None and 'forward' not in vars(norm)
    assert several.equal(nn.functional.batch_norm(more, None, None, norm.weight, norm.bias, training=True))


def test_a_run_with_a_last_batch_of_one(tmp_path):
    # 120 = 7 x 17 + 1
    made = config(
        **{
            'train.max_epochs': 1,
            'train.dataloader': dict(batch_size_per_gpu=17, workers_per_gpu=0),
            'train.transform': [dict(type='Resize', size=32)],
            'evaluation.before': False,
        }
    )
    made['model'] = dict(
        tuners=[dict(type='Full')],
        backbone=dict(
            type='timm', name='resnest14d', pretrained=False, preprocessing=dict(size=32), kwargs=SPLIT
        ),
    )
    trainer = build_trainer(
        model=made,
        work_dir=tmp_path / 'run',
        device='cpu',
        train_dataset=SmallDigits('train'),
        eval_dataset=SmallDigits('test'),
    )
    assert trainer.train()['steps'] == 8
    assert all('forward' not in vars(module) for module in trainer.model.modules())


@pytest.mark.slow
@pytest.mark.parametrize(
    'name, size, options',
    [
        ('resnest14d', 32, SPLIT),
        ('res2net50_26w_4s', 32, dict(layers=(1, 1, 1, 1))),
        ('skresnet18', 32, {}),
        ('efficientnet_b0', 32, {}),
        ('repvgg_a0', 32, {}),
        ('ghostnet_100', 32, {}),
        ('levit_128s', 224, {}),
        ('xcit_nano_12_p16_224', 32, {}),
        ('seresnet18', 32, {}),
    ],
)
def test_networks_take_one_image(name, size, options):
    backbone = timm_net(name, size, **options)
    model = backbone.network.train()
    with single_values_normed(model):
        assert model(images(1, size)).isfinite().all()
