"""A head learns from cached features what it learns from images, and gets no features but its own."""

import numpy as np
import pytest
import torch

from tests.engine.runs import SmallDigits, small
from vet.core.backbone import Backbone
from vet.engine import features
from vet.engine.log import read_log

PROBE = {'model.tuners': [dict(type='LinearProbe')], 'evaluation.before': False}
CACHED = PROBE | {'train.cache_features': True}
HARD = {'model.head': dict(type='Linear', dropout=0.5), 'train.label_smoothing': 0.1, 'train.ema': 0.8, 'train.accumulate': 2,
        'train.max_epochs': 4, 'train.stages': [dict(epochs=1), dict(epochs=3, head_lr=1e-2)], 'evaluation.select': 'best'}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('VET_CACHE_DIR', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


def files(cache):
    return sorted(cache.glob('*.npy'))


def ended(trainer):
    """All that a run ends with, apart from times."""
    summary = trainer.train()
    curves = [{name: value for name, value in record.items() if name not in ('images_per_second', 'memory_mb')}
              for record in read_log(trainer.folder.path)]
    return dict(accuracy=summary['accuracy'], validation=summary['validation'], parameters=summary['parameters'], curves=curves,
                tensors={name: tensor.tolist() for name, tensor in trainer.model.trained_state().items()})


@pytest.mark.parametrize('options', [{}, HARD, {'train.precision': 'bf16'}], ids=['plain', 'hard', 'bf16'])
def test_the_head_learns_what_it_learns_from_images(tmp_path, cache, options):
    expected = ended(small(tmp_path / 'images', **PROBE | options))
    assert not cache.exists()
    assert ended(small(tmp_path / 'first', **CACHED | options)) == expected
    assert len(files(cache)) == 1
    assert ended(small(tmp_path / 'second', **CACHED | options)) == expected


def test_a_head_that_computes_otherwise_on_strided_features_learns_the_same_but_for_rounding(tmp_path):
    options = {'model.head': dict(type='MLP', hidden=16, dropout=0.5), 'train.precision': 'fp32'}
    expected, found = (ended(small(tmp_path / name, **given | options))['tensors'] for name, given in (('a', PROBE), ('b', CACHED)))
    for name, tensor in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(tensor), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_run_that_goes_on_from_a_checkpoint(tmp_path, monkeypatch):
    expected = ended(small(tmp_path / 'whole', **CACHED | HARD))
    begun = small(tmp_path / 'begun', **CACHED | HARD)
    with monkeypatch.context() as patch:
        patch.setattr(begun, '_end_epoch', lambda learner, epoch, progress, *args: (_ for _ in ()).throw(KeyboardInterrupt)
                      if epoch == 3 else type(begun)._end_epoch(begun, learner, epoch, progress, *args))
        with pytest.raises(KeyboardInterrupt):
            begun.train()
    assert ended(small(tmp_path / 'begun', 'auto', **CACHED | HARD)) == expected


def test_the_backbone_sees_each_image_once_for_all_runs(tmp_path, cache, monkeypatch):
    seen, forward = [], Backbone.forward
    monkeypatch.setattr(Backbone, 'forward', lambda self, images: seen.append(len(images)) or forward(self, images))
    small(tmp_path / 'first', **CACHED).train()
    first, test = sum(seen), len(SmallDigits('test'))
    assert first == 1 + len(SmallDigits('train')) + test            # the first is the look at whether it draws at random
    for i, options in enumerate(({'seed': 7}, {'train.max_epochs': 3}, {'train.optimizer.lr': 1e-4}, {'model.head': dict(type='MLP')})):
        seen.clear()
        small(tmp_path / f'{i}', **CACHED | options).train()
        assert sum(seen) == 1 + test
    assert len(files(cache)) == 1


@pytest.mark.parametrize('options', [
    {'train.transform': [dict(type='Pad', padding=1), dict(type='Resize')]},
    {'model.backbone.pretrained': False}, {'train.precision': 'bf16'}, {'train.dataloader.batch_size_per_gpu': 16}], ids=lambda o: next(iter(o)))
@pytest.mark.slow
def test_what_changes_features_has_a_file_of_its_own(tmp_path, cache, options):
    small(tmp_path / 'one', **CACHED).train()
    small(tmp_path / 'other', **CACHED | options).train()
    one, other = (np.load(path) for path in files(cache))
    assert one.shape == other.shape and one.dtype == np.float32
    assert np.array_equal(one, other) == ('train.dataloader.batch_size_per_gpu' in options)


def test_an_image_that_changes_is_noticed(tmp_path, cache):
    small(tmp_path / 'one', **CACHED).train()
    changed = small(tmp_path / 'other', **CACHED)
    changed.data['train'].samples[3][0][2, 2] += 1
    changed.train()
    one, other = (np.load(path) for path in files(cache))
    assert (one != other).any(1).sum() == 1


class Noisy(SmallDigits):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image.rotate(float(torch.rand(()))), label


@pytest.mark.parametrize('change, reason', [
    ({'model.tuners': [dict(type='BitFit')]}, 'more than the head trains'),
    ({'train.mixup': 0.3}, 'mixup and cutmix mix images'), ({'train.cutmix': 0.3}, 'mixup and cutmix mix images'),
    ({'train.transform': [dict(type='RandomHorizontalFlip', p=0.001)]}, 'train.transform or the dataset draws at random'),
    ('dataset', 'train.transform or the dataset draws at random'), ('dropout', 'the backbone draws at random')],
    ids=['tuner', 'mixup', 'cutmix', 'transform', 'dataset', 'dropout'])
def test_where_features_differ_from_epoch_to_epoch_it_says_so_and_trains_on_images(tmp_path, cache, capsys, change, reason):
    trainer = small(tmp_path / 'run', **CACHED | {'train.max_epochs': 1} | (change if isinstance(change, dict) else {}))
    if change == 'dataset':
        trainer.data['train'] = Noisy('train')
    if change == 'dropout':
        trainer.model.backbone.network.blocks[0].mlp.drop1.p = 0.1
    trainer.train()
    assert f'train.cache_features has no effect: {reason}' in capsys.readouterr().err
    assert not cache.exists()


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
    trainer = small(tmp_path / 'run', **CACHED | {'train.max_epochs': 1, 'train.dataloader.workers_per_gpu': workers})
    if what == 'dataset':
        trainer.data['train'] = NoisyOnce('train')
    else:
        trainer._augment[None] = Turn(trainer._augment[None])
    assert len(trainer.data['train']) > 30
    trainer.train()
    assert 'train.cache_features has no effect: train.transform or the dataset draws' in capsys.readouterr().err
    assert not cache.exists()


def test_a_computation_that_is_broken_off_leaves_no_file(tmp_path, cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(features.os, 'replace', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            features.cached_features(*arguments(tmp_path / 'a'))
    assert [path.suffix for path in cache.iterdir()] == ['.lock']
    made = features.cached_features(*arguments(tmp_path / 'b'))
    assert len(made.features_NC) == len(SmallDigits('train')) and np.isfinite(made.features_NC).all()


def arguments(folder):
    trainer = small(folder, **CACHED)
    return trainer.model, trainer.data['train'], trainer._augment[None], trainer.settings.train, trainer.accelerator


def compute_and_tell(folder, cache):
    """Of a child process: makes the features, and leaves a file if it was the one that computed them."""
    features.os.environ['VET_CACHE_DIR'] = str(cache)
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
