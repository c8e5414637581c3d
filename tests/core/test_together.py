"""What tuners and options do to each other: in stacks, across tasks, in averages and after training."""

import pytest
import torch

from tests.engine.runs import small
from tests.nets import images, tiny
from vet.builders import build_trainer
from vet.config import read_settings
from vet.core.assemble import build_classifier, build_classifiers
from vet.errors import NoSiteError, UserError
from vet.registry import BACKBONES, TUNERS

LINEAR = dict(type='Linear')


def stack(*tuners, family='vit'):
    torch.manual_seed(0)
    return build_classifier(tiny(family), list(tuners), LINEAR, ['a', 'b']).eval()


@pytest.mark.parametrize(
    'tuners',
    [
        [dict(type='VPT', length=2), dict(type='UTuning', width=2)],
        [dict(type='Prefix', length=2), dict(type='UTuning', width=2)],
        [dict(type='Prefix', length=2), dict(type='AdaptFormer', width=2, at='attn')],
    ],
    ids=str,
)
def test_parallel_adapters_pass_by_the_tokens_of_others(tuners):
    model = stack(*tuners)
    model(images()).square().sum().backward()
    assert all(p.grad is not None for p in model.trainable().values())


def test_a_second_prefix_would_hide_the_first():
    with pytest.raises(NoSiteError, match='an attention without another prefix'):
        stack(dict(type='Prefix', length=2), dict(type='Prefix', length=2))


def test_a_branch_from_the_pixels_needs_them_unedited():
    with pytest.raises(NoSiteError, match='images that no other tuner edits before the backbone takes them'):
        stack(dict(type='BorderPrompt', pad=2), dict(type='PixelBranch'), family='resnet')


DROPS, FORMS = dict(type='LoRA', rank=2, dropout=0.5), dict(type='GPS', k=2, at='attn.qkv')


@pytest.mark.parametrize('tuners', [[DROPS, FORMS], [FORMS, DROPS]], ids=['drops first', 'drops last'])
def test_dropout_beside_a_tuner_that_needs_the_whole_weight(tuners):
    """The input of one update can be dropped out only while no other update forms the weight: it would
    be left out in silence.
    """
    frozen = tiny('vit').eval()
    backbone = tiny('vit').eval()
    first, second = (TUNERS.build(tuner) for tuner in tuners)
    first.attach(backbone)
    alone = backbone(images())
    with pytest.raises(
        NoSiteError, match="needs the whole weight of 'weight' in Linear.*set that dropout to 0"
    ):
        second.attach(backbone)
    assert torch.equal(backbone(images()), alone)  # the refused tuner is taken back whole
    first.detach()
    assert torch.equal(backbone(images()), frozen(images()))
    stack(DROPS | dict(dropout=0.0), FORMS)


def test_hooks_at_modules_without_parameters():
    assert stack(dict(type='Adapter', width=2, at='pos_drop'))(images()).shape == (4, 2)


def test_merged_is_what_evaluation_sees():
    model = stack(dict(type='DyLoRA', rank=4, use=2))
    with torch.no_grad():
        for p in model.trainable().values():
            p.normal_(0, 0.3)
    evaluated = model(images())
    model.train()
    model.merge()
    assert model.tuners[0].training and torch.allclose(
        model.eval()(images()), evaluated, rtol=1e-4, atol=1e-5
    )


def test_bf16_scales_near_one_count():
    model = stack(dict(type='SSF', std=0, at='mlp.fc1'))
    frozen = model(images())
    with torch.no_grad():
        for name, p in model.tuners[0].trainable():
            if name.endswith('gamma'):
                p.fill_(1.003)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        moved = model.backbone.network.blocks[0].mlp.fc1(torch.ones(1, 32))
        model.tuners[0].detach()
        assert not torch.equal(moved, model.backbone.network.blocks[0].mlp.fc1(torch.ones(1, 32)))
    assert frozen.isfinite().all()


@pytest.mark.parametrize(
    'tuner, own',
    [
        (dict(type='LoRA', rank=2, variant='dora'), 'm'),
        (dict(type='GPS', k=2), 'values'),
        (dict(type='SCT', channels=4), None),
    ],
    ids=str,
)
def test_tasks_do_not_share_what_belongs_to_one_weight(tuner, own):
    """With other frozen weights, the second task still starts as the identity."""
    other = tiny('vit')
    with torch.no_grad():
        for p in other.network.parameters():
            p.mul_(1.1)
    other.identity['sha256'] = 'another'
    parts = {'one': (tiny('vit'), LINEAR, ['a', 'b']), 'two': (other, LINEAR, ['c', 'd'])}
    if own is None:
        with pytest.raises(
            UserError,
            match=r"nothing that tasks can share: 'tuners.0.deltas.blocks.0.norm2.linear.bias' belongs to one frozen weight",
        ):
            build_classifiers(parts, [tuner])
        return
    expected = other.eval()(images())
    model = build_classifiers(parts, [tuner]).eval()
    assert torch.equal(model.for_task('two').backbone(images()), expected)
    names = {name for name in model.trainable() if not name.startswith('head.')}
    assert {name.rpartition('.')[2] for name in names if name.startswith('tuners.two.')} == {own}
    assert {name.rpartition('.')[2] for name in names if name.startswith('tuners.0.')} in (
        {'A', 'B'},
        {'shift'},
    )


@pytest.mark.parametrize('tuner', ['LinearProbe', 'BitFit'])
def test_tasks_may_share_nothing(tuner):
    parts = {name: (tiny('vit'), LINEAR, [name, 'x']) for name in ('one', 'two')}
    model = build_classifiers(parts, [dict(type=tuner)])
    assert all(name.split('.')[1] in parts for name in model.trainable())


def test_equal_weights_with_other_pools():
    kinds = [
        dict(type='torchvision', name='resnet18', pretrained=False, preprocessing=dict(size=32), **options)
        for options in (dict(), dict(pool='catavgmax'))
    ]
    model = build_classifiers(
        {name: (BACKBONES.build(kind), LINEAR, ['a', 'b']) for name, kind in zip(('one', 'two'), kinds)}, []
    )
    assert model.for_task('two').backbone(images(2)).shape == (2, 1024)


@pytest.mark.slow
def test_going_on_from_a_folder_prepares_nothing_anew(tmp_path):
    """GPS keeps its connections; other tuners than the folder's are refused."""
    first = small(tmp_path / 'one', **{'model.tuners': [dict(type='GPS')], 'train.max_epochs': 1})
    first.train()

    def again(**options):
        options = {
            'model.finetune': False,
            'train.optimizer.lr': 1e-12,
            'seed': 3,
            'train.max_epochs': 1,
        } | options
        return build_trainer(
            model=first.folder.output,
            work_dir=tmp_path / 'two',
            device='cpu',
            cfg_options=options,
            train_dataset=first.data['train'],
            eval_dataset=first.data['test'],
        )

    trainer = again()
    trainer.train()
    for name, value in trainer.model.trained_state().items():
        torch.testing.assert_close(value, first.model.trained_state()[name], rtol=0, atol=1e-9)
    with pytest.raises(UserError, match='model.finetune is False.*but model.tuners is changed'):
        again(**{'model.tuners': [dict(type='GPS', k=2)]})


@pytest.mark.parametrize(
    'change, text',
    [
        (
            dict(train=dict(max_epochs=2, stages=[dict(epochs=3)])),
            'train.max_epochs is 2, but train.stages have 3 epochs together',
        ),
        (
            dict(train=dict(lr_scheduler=dict(T_max=2), stages=[dict(epochs=3)])),
            'train.lr_scheduler.T_max is 2, but train.stages',
        ),
        (
            dict(train=dict(stages=[dict(epochs=1, head_lr=-1.0)])),
            r'train.stages\[0\].head_lr is -1.0; it must be at least 1e-12',
        ),
        (
            dict(train=dict(stages=[dict(epochs=1, train='*head')])),
            r"train.stages\[0\].train is '\*head', not a regular expression",
        ),
        (dict(model=dict(shared='*A')), r"model.shared is '\*A', not a regular expression"),
    ],
)
def test_configs_that_contradict_themselves(change, text):
    with pytest.raises(UserError, match=text):
        read_settings(
            dict(
                dict(
                    model=dict(dict(backbone=dict(type='DigitsViT')), **change.pop('model', {})), dataset={}
                ),
                **change,
            )
        )


def test_a_short_form_beside_the_alias_is_refused():
    with pytest.raises(
        UserError,
        match=r"model.tuners is \[\{'type': 'LoRA', 'r': 16\}\], and model.backbone.lora_length is 4.*Give one",
    ):
        read_settings(
            dict(
                model=dict(backbone=dict(type='DigitsViT', lora_length=4), tuners=[dict(type='LoRA', r=16)]),
                dataset={},
            )
        )


@pytest.mark.parametrize(
    'tuner', [dict(type='FacT', rank=[1, 2, 3]), dict(type='ARC', width=[1, 2, 3])], ids=str
)
def test_what_is_shared_has_one_size(tuner):
    with pytest.raises(UserError, match=r'is \[1, 2, 3\]; it must be a whole number'):
        stack(tuner)
