"""What trains behind the cut learns from cached features what it learns from images, and gets no
features but its own.
"""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.layers import PatchEmbed
from torch import nn

from tests.engine.runs import SmallDigits, build, ended, small
from vet.engine.feed import features
from vet.engine.feed.cut import Cut, Resumed
from vet.engine.learner import Learner
from vet.engine.run import Run
from vet.errors import UserError

PROBE = {'model.tuners': [dict(type='LinearProbe')], 'evaluation.before': False}
CACHED = PROBE | {'train.cache_features': True}
HARD = {
    'model.head': dict(type='Linear', dropout=0.5),
    'train.label_smoothing': 0.1,
    'train.ema': 0.8,
    'train.accumulate': 2,
    'train.max_epochs': 4,
    'train.stages': [dict(epochs=1), dict(epochs=3, head_lr=1e-2)],
    'evaluation.select': 'best',
}


def files(cache, images=120):
    """The files of so many images: 120 are trained on, 60 tested."""
    return [path for path in sorted(cache.glob('*.npy')) if len(np.load(path, mmap_mode='r')) == images]


VIT = {
    'model.backbone': dict(
        type='timm',
        name='vit_tiny_patch16_224',
        pretrained=False,  # SideTuning needs 16 pixels
        kwargs=dict(img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=2, dynamic_img_size=True),
    ),
    'train.transform': [dict(type='Resize')],
}
TUNERS = {
    'linear': {'model.tuners': [dict(type='LinearProbe')]},
    'last blocks': {'model.tuners': [dict(type='Partial', blocks=2, norm=True)]},
    'lora': {'model.tuners': [dict(type='LoRA', rank=2, dropout=0.3, at=['attn.qkv[-1]', 'mlp.fc1[-1]'])]},
    'side': {'model.tuners': [dict(type='SideTuning')], **VIT},
    'two': {'model.tuners': [dict(type='SideTuning'), dict(type='Adapter', width=2, at='block[-1]')], **VIT},
}
SLOW = [
    ('last blocks', HARD),
    ('side', HARD),
    ('lora', {'train.precision': 'bf16', 'train.dataloader.workers_per_gpu': 1}),
]


@pytest.mark.parametrize(
    'tuner, options',
    [
        *(
            pytest.param(name, {}, marks=[pytest.mark.slow] if name in ('last blocks', 'side', 'two') else [])
            for name in TUNERS
        ),
        ('linear', HARD),
        pytest.param(
            'linear', {'train.precision': 'bf16', 'evaluation.select': 'best'}, marks=pytest.mark.slow
        ),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
    ],
)
def test_what_trains_learns_what_it_learns_from_images(tmp_path, cache, tuner, options):
    def run(name, **more):
        torch.manual_seed(0)  # of the backbone's weights
        return ended(
            small(tmp_path / name, **PROBE | TUNERS[tuner] | {'evaluation.before': True} | options | more)
        )

    for seed in (0,) if options else (0, 1):
        expected = run(f'images-{seed}', seed=seed)
        assert not files(cache) or seed
        assert run(f'kept-{seed}', seed=seed, **{'train.cache_features': True}) == expected
    assert len(files(cache, 108 if 'evaluation.select' in options else 120)) == len(files(cache, 60)) == 1
    assert len(files(cache, 12)) == ('evaluation.select' in options)


def test_images_of_another_shape_have_a_file_of_their_own(tmp_path, cache):
    """Plain images have the same bytes in both shapes, and the network makes as many tokens of both."""
    for size in ([16, 32], [32, 16]):
        data = {}
        for name, split in (('train_dataset', 'train'), ('eval_dataset', 'test')):
            data[name] = SmallDigits(split)
            labels = data[name].targets
            data[name].samples = [
                (np.full((8, 8), i + 130 * (split == 'test'), np.uint8), label)
                for i, label in enumerate(labels)
            ]
        torch.manual_seed(0)
        resized = [dict(type='Resize', size=size)]
        options = {'train.transform': resized, 'evaluation.transform': resized, 'train.max_epochs': 1}
        build(tmp_path / str(size[0]), None, data, **CACHED | VIT | options).train()
    assert len(files(cache)) == 2


@pytest.mark.slow
def test_a_network_that_drops_out_behind_the_cut(tmp_path, cache):
    def run(name, options):
        trainer = small(tmp_path / name, **options | TUNERS['last blocks'])
        trainer.model.backbone.network.blocks[-1].mlp.drop1.p = 0.3
        return ended(trainer)

    assert run('kept', CACHED) == run('images', PROBE)
    assert len(files(cache)) == 1


@pytest.mark.slow
@pytest.mark.parametrize('lean', [True, False])
def test_a_head_that_computes_otherwise_on_strided_features(tmp_path, cache, lean):
    """Class tokens of a whole last block lie among the others: a batch norm sums them in an order of
    its own.
    """
    options = {'model.head': dict(type='MLP', hidden=16, dropout=0.5), 'train.shortcuts': lean}
    assert ended(small(tmp_path / 'a', **PROBE | options)) == ended(small(tmp_path / 'b', **CACHED | options))


@pytest.mark.slow
def test_a_run_that_goes_on_from_a_checkpoint(tmp_path, monkeypatch):
    expected = ended(small(tmp_path / 'whole', **CACHED | HARD))
    begun = small(tmp_path / 'begun', **CACHED | HARD)
    with monkeypatch.context() as patch:
        end_epoch = Run._end_epoch

        def interrupted(run, learner, epoch, *args):
            if epoch == 3:
                raise KeyboardInterrupt
            end_epoch(run, learner, epoch, *args)

        patch.setattr(Run, '_end_epoch', interrupted)
        with pytest.raises(KeyboardInterrupt):
            begun.train()
    assert ended(small(tmp_path / 'begun', 'auto', **CACHED | HARD)) == expected


def test_the_backbone_sees_each_image_once_for_all_runs(tmp_path, cache, monkeypatch):
    seen, forward = [], PatchEmbed.forward

    def count(name, **options):
        trainer = small(tmp_path / name, **CACHED | {'evaluation.before': True} | options)
        seen.clear()
        trainer.train()
        return sum(seen)

    monkeypatch.setattr(
        PatchEmbed, 'forward', lambda self, images: seen.append(len(images)) or forward(self, images)
    )
    looks = 2 * (3 + 3 + 1)  # where the cut is, and whether anything is drawn before it
    assert count('first') == looks + 120 + 60
    for i, options in enumerate(
        ({'seed': 7}, {'train.max_epochs': 3}, {'train.optimizer.lr': 1e-4}, {'model.head': dict(type='MLP')})
    ):
        assert count(f'{i}', **options) == looks
    assert len(files(cache)) == 1


@pytest.mark.parametrize(
    'options',
    [
        {'train.transform': [dict(type='Pad', padding=1), dict(type='Resize')]},
        {'model.backbone.pretrained': False},
        {'train.precision': 'bf16'},
        {'train.dataloader.batch_size_per_gpu': 16},
    ],
    ids=lambda o: next(iter(o)),
)
@pytest.mark.slow
def test_what_changes_features_has_a_file_of_its_own(tmp_path, cache, options):
    small(tmp_path / 'one', **CACHED).train()
    small(tmp_path / 'other', **CACHED | options).train()
    one, other = (np.load(path) for path in files(cache))
    assert one.shape == other.shape and one.dtype == np.float32
    # Batches of another size change features by rounding alone, and not on every processor.
    assert np.allclose(one, other, atol=1e-5) == ('train.dataloader.batch_size_per_gpu' in options)


def test_an_image_that_changes_is_noticed(tmp_path, cache):
    small(tmp_path / 'one', **CACHED).train()
    changed = small(tmp_path / 'other', **CACHED)
    image, label = changed.data['train'].samples[3]
    other = image.copy()
    other[2, 2] += 1
    changed.data['train'].samples[3] = (other, label)
    changed.train()
    one, other = (np.load(path) for path in files(cache))
    assert (one != other).any(1).sum() == 1


class Noisy(SmallDigits):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image.rotate(float(torch.rand(()))), label


@pytest.mark.parametrize(
    'change, reason',
    [
        (
            {'model.tuners': [dict(type='BitFit')]},
            "a tuner edits 'patch_embed.proj', and no block lies before it",
        ),
        (
            {'model.tuners': [dict(type='VPT', length=2)]},
            "a tuner edits 'blocks.0', and no block lies before it",
        ),
        (
            {'model.tuners': [dict(type='LadderSide')]},
            "a tuner edits 'the network', and no block lies before it",
        ),
        (
            {'model.tuners': [dict(type='Partial'), dict(type='LoRA', at='attn.qkv[0]')]},
            "a tuner edits 'blocks.0.attn.qkv', and no block",
        ),
        ({'train.mixup': 0.3}, 'mixup and cutmix mix images'),
        ({'train.cutmix': 0.3}, 'mixup and cutmix mix images'),
        ({'train.compile': True}, 'train.compile compiles the network whole'),
        ({'train.gradient_checkpointing': True}, 'train.gradient_checkpointing computes blocks again'),
        (
            {'train.transform': [dict(type='RandomHorizontalFlip', p=0.001)]},
            'the transform or the dataset draws at random',
        ),
        ('dataset', 'the transform or the dataset draws at random'),
        ('dropout', 'the network draws at random'),
        ('disk', 'the features of 120 images, 64 numbers each, take 0 MiB, and'),
    ],
    ids=[
        'bitfit',
        'prompts',
        'ladder',
        'early',
        'mixup',
        'cutmix',
        'compile',
        'checkpointing',
        'transform',
        'dataset',
        'dropout',
        'disk',
    ],
)
def test_where_nothing_can_be_kept_it_says_so_and_trains_on_images(
    tmp_path, cache, capsys, monkeypatch, change, reason
):
    trainer = small(
        tmp_path / 'run',
        **CACHED
        | {'train.max_epochs': 0 if change == {'train.compile': True} else 1}
        | (change if isinstance(change, dict) else {}),
    )
    if change == 'disk':
        monkeypatch.setattr(features.shutil, 'disk_usage', lambda _: SimpleNamespace(free=1.1 * 120 * 64 * 4))
    if change == 'dataset':
        trainer.data['train'] = Noisy('train')
    if change == 'dropout':
        trainer.model.backbone.network.blocks[0].mlp.drop1.p = 0.1
    trainer.train()
    assert f'train.cache_features has no effect on the train images: {reason}' in capsys.readouterr().err
    assert not files(cache)


@pytest.mark.slow
def test_random_augmentation_leaves_the_evaluation_s_features(tmp_path, cache):
    options = {
        'train.transform': [dict(type='RandomHorizontalFlip')],
        'evaluation.select': 'best',
        'evaluation.before': True,
    }
    assert ended(small(tmp_path / 'kept', **CACHED | options)) == ended(
        small(tmp_path / 'images', **PROBE | options)
    )
    assert [len(files(cache, images)) for images in (108, 12, 60)] == [0, 1, 1]


def test_test_images_are_read_before_step_0_and_after_the_last_step_alone(tmp_path, monkeypatch):
    class Watched(SmallDigits):
        def __getitem__(self, index):
            read.append(len(steps))
            return super().__getitem__(index)

    read, steps, step = [], [], Learner.step
    monkeypatch.setattr(Learner, 'step', lambda *args: steps.append(1) or step(*args))
    trainer = small(tmp_path / 'run', **CACHED | {'evaluation.before': True, 'evaluation.select': 'best'})
    trainer.data['test'] = Watched('test')
    trainer.train()
    assert set(read) == {0} and len(steps) == 8
    expected = trainer.evaluate('test')
    trainer.model.tuners[0].detach()
    read.clear()
    # after training, of the model as it then stands
    assert trainer.evaluate('test') == expected and set(read) == {8}


def test_images_of_two_sizes_are_refused(tmp_path, cache):
    trainer = small(
        tmp_path / 'run',
        **CACHED | VIT | {'model.tuners': [dict(type='Partial')], 'train.dataloader.batch_size_per_gpu': 1},
    )
    whole = trainer._augment[None]
    trainer._augment[None] = lambda image: whole(image)[
        :, : 8 if sum(image.convert('L').tobytes()) % 2 else 16
    ]
    with pytest.raises(UserError, match='images of one size'):
        trainer.train()
    assert not files(cache)


def test_what_a_killed_process_left_goes(cache, tmp_path):
    features.cached_features(*arguments(tmp_path / 'a'))
    (path,) = files(cache)
    left = path.with_name(f'.{path.stem.rpartition("-")[0]}.12345.tmp')
    left.write_bytes(path.read_bytes())
    path.unlink()
    features.cached_features(*arguments(tmp_path / 'b'))
    assert files(cache) == [path] and not left.exists()


class NoisyOnce(SmallDigits):
    def __getitem__(self, index):
        if index == 30:
            np.random.rand()
        return super().__getitem__(index)


class Turn:
    """Draws for some images only, as RandomApply within a choice by size does."""

    def __init__(self, transform):
        self.transform, self.seen = transform, 0

    def __call__(self, image):
        self.seen += 1
        if self.seen == 20:
            torch.rand(())
        return self.transform(image)


@pytest.mark.parametrize('what, workers', [('dataset', 0), ('dataset', 1), ('transform', 0)])
def test_a_draw_for_any_image_is_noticed(tmp_path, cache, capsys, what, workers):
    trainer = small(
        tmp_path / 'run', **CACHED | {'train.max_epochs': 1, 'train.dataloader.workers_per_gpu': workers}
    )
    if what == 'dataset':
        trainer.data['train'] = NoisyOnce('train')
    else:
        trainer._augment[None] = Turn(trainer._augment[None])
    assert len(trainer.data['train']) > 30
    trainer.train()
    assert (
        'train.cache_features has no effect on the train images: the transform or the dataset draws'
        in capsys.readouterr().err
    )
    assert not files(cache)


def test_a_computation_that_is_broken_off_leaves_no_file(tmp_path, cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            features.cached_features(*arguments(tmp_path / 'a'))
    assert [path.suffix for path in cache.iterdir()] == ['.lock']
    made = features.cached_features(*arguments(tmp_path / 'b'))
    assert len(made.kept_N) == len(SmallDigits('train')) and made.kept_N.isfinite().all()


def arguments(folder):
    trainer = small(folder, **CACHED)
    train = trainer.settings.train
    return (
        trainer.model,
        trainer.data['train'],
        trainer._augment[None],
        train.dataloader,
        trainer.accelerator,
        train,
    )


def compute_and_tell(folder, cache):
    """Of a child process: makes the features, and leaves a file if it was the one that computed them."""
    os.environ['VET_CACHE_DIR'] = str(cache)
    compute = features._compute
    features._compute = lambda *args: (folder.mkdir(), compute(*args))
    features.cached_features(*arguments(folder / 'run'))


@pytest.mark.slow
def test_processes_at_once_compute_once(process, tmp_path, cache):
    children = [process(compute_and_tell, tmp_path / name, cache) for name in 'ab']
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert sum((tmp_path / name).exists() for name in 'ab') == len(files(cache)) == 1


def test_a_batch_stands_whole_on_the_device_of_the_training():
    net = nn.Identity()
    cut = Cut(net, '', net, {}, torch.Size([3, 4, 4]), needs_images=False)
    kept_N = torch.arange(10.0).view(5, 2)
    cached = features.Features(Resumed(net, cut), kept_N, torch.arange(5), None)
    listed = [(0, 4, 1), (0, 2, 0)]
    [batch] = cached.batches([listed], torch.device('cpu'))
    assert torch.equal(batch.kept, kept_N[[4, 2]]) and batch.images.shape == (2, 3, 4, 4)
    assert batch.labels.tolist() == [4, 2] and batch.weights.tolist() == [1.0, 0.0]
    [elsewhere] = cached.batches([listed], torch.device('meta'))
    places = {
        tensor.device.type
        for tensor in (elsewhere.kept, elsewhere.images, elsewhere.labels, elsewhere.weights)
    }
    assert places == {'meta'}
