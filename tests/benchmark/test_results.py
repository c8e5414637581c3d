"""A run's identity is all that decides its result, and a result file that anything has touched is not
read.
"""

import os
import shutil
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

from tests.benchmark.made import result, written
from tests.benchmark.runs import campaign, results
from vet.benchmark import results as module
from vet.benchmark.results import (
    code_sha256,
    fingerprint,
    identity,
    read_result,
    read_results,
    same_data,
    write_result,
)
from vet.benchmark.suite import Run, load_suite
from vet.datasets.base import ImageDataset
from vet.datasets.hold_out import hold_out

RUN = Run('tiny', 'few', 'vit', 'linear', 0, dict(train=dict(lr=1e-3), ranks={0: 4, 10: 8}))
DATA = dict(train=dict(images=3, sha256='ab'))


def dataset(sources=('a.png', 'b.png', 'c.png', 'd.png'), labels=(0, 1, 0, 1), classes='xy'):
    return ImageDataset(classes, zip(sources, labels))


def test_identity_is_of_config_data_weights_and_code(monkeypatch):
    name = identity(RUN, DATA, '12')
    assert name == identity(deepcopy(RUN), deepcopy(DATA), '12')
    changed = deepcopy(RUN.config)
    changed['train']['lr'] = 2e-3
    others = [
        identity(replace(RUN, config=changed), DATA, '12'),
        identity(RUN, dict(train=dict(images=3, sha256='ac')), '12'),
        identity(RUN, DATA, '13'),
        identity(RUN, DATA, '12', ['vet.benchmark.suite']),
    ]
    monkeypatch.setattr(module, 'code_sha256', lambda plugins=(): 'other code')
    others.append(identity(RUN, DATA, '12'))
    assert len({name, *others}) == 6


@pytest.mark.parametrize(
    'change',
    [
        dict(suite='s'),
        dict(dataset='d'),
        dict(backbone='b'),
        dict(tuner='t'),
        dict(seed=9),
        dict(point={'train.optimizer.lr': 1}),
        dict(is_search=True),
        dict(group='g'),
    ],
)
def test_identity_is_of_nothing_else(change):
    assert identity(replace(RUN, **change), DATA, '12') == identity(RUN, DATA, '12')


def test_code_is_all_of_vet_but_what_only_reports(tmp_path, monkeypatch):
    for room in ('core', 'cli', 'benchmark'):
        (tmp_path / room).mkdir()
        (tmp_path / room / 'file.py').write_text('a = 1')
    (tmp_path / '__init__.py').write_text('')
    monkeypatch.setattr(module.vet, '__file__', str(tmp_path / '__init__.py'))

    def sha256_with(path, text):
        (tmp_path / path).write_text(text)
        code_sha256.cache_clear()
        return code_sha256()

    try:
        first = sha256_with('core/file.py', 'a = 1')
        assert sha256_with('cli/file.py', 'a = 2') == sha256_with('benchmark/file.py', 'a = 2') == first
        assert sha256_with('core/file.py', 'a = 2') != first
    finally:
        code_sha256.cache_clear()


def test_fingerprint_is_of_labels_classes_and_file_names():
    first = fingerprint(dataset())
    assert first == fingerprint(dataset(sources=[f'/elsewhere/{name}.png' for name in 'abcd']))
    others = [
        dataset(labels=(0, 1, 1, 1)),
        dataset(sources=('a.png', 'b.png', 'c.png', 'e.png')),
        dataset(classes='xz'),
        dataset(sources=('b.png', 'a.png', 'c.png', 'd.png')),
        dataset(sources='abc', labels=(0, 1, 0)),
    ]
    assert len({str(fingerprint(other)) for other in (dataset(), *others)}) == 6


def test_fingerprint_is_of_what_files_hold(tmp_path):
    """Also where the size and the time of a file are as before."""
    path = tmp_path / 'a.png'
    path.write_bytes(b'12')
    before = path.stat()
    first = fingerprint(dataset(sources=[path], labels=[0]))
    assert fingerprint(dataset(sources=[str(path)], labels=[0])) == first
    path.write_bytes(b'34')
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = fingerprint(dataset(sources=[path], labels=[0]))
    assert changed['contents'] != first['contents'] and changed['sha256'] == first['sha256']
    path.write_bytes(b'12')
    assert fingerprint(dataset(sources=[path], labels=[0])) == first
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other/a.png').write_bytes(b'12')
    assert fingerprint(dataset(sources=[tmp_path / 'other/a.png'], labels=[0])) == first


def test_fingerprint_is_of_pixels_in_memory():
    pictures = [np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8)]
    first = fingerprint(dataset(sources=pictures, labels=[0, 1]))
    assert fingerprint(dataset(sources=[each.copy() for each in pictures], labels=[0, 1])) == first
    pictures[1][0, 0] = 7
    assert fingerprint(dataset(sources=pictures, labels=[0, 1])) != first


def test_sets_whose_files_have_the_same_names_and_sizes_are_told_apart(tmp_path):
    for split in ('train', 'test'):
        (tmp_path / split).mkdir()
        (tmp_path / split / '0.bmp').write_bytes(split.encode().ljust(5))
    train, test = (
        fingerprint(dataset(sources=[tmp_path / split / '0.bmp'], labels=[0])) for split in ('train', 'test')
    )
    assert train['sha256'] == test['sha256'] and train != test and not same_data(train, test)


def test_fingerprints_of_earlier_results_are_compared_by_what_both_tell():
    now = dict(images=3, classes=2, sha256='a', contents='b')
    earlier = dict(images=3, classes=2, sha256='a')
    assert same_data(dict(train=now, test=None), dict(train=earlier, test=None)) and same_data(
        earlier, earlier
    )
    assert not same_data(now, dict(earlier, sha256='x')) and not same_data(now, dict(now, contents='c'))
    assert not same_data(dict(train=now), dict(train=now, test=now)) and not same_data(now, None)
    assert same_data(dict(train=dict(a=now, b=now)), dict(train=dict(a=earlier, b=earlier)))


def test_a_copy_is_no_further_seed(tmp_path):
    [one] = written(tmp_path, result())
    for name in ('cifar100.vitb16.lora.seed1', 'cifar100.vitb16.lora.seed0 (copy)'):
        shutil.copy(tmp_path / 'cifar100.vitb16.lora.seed0.json', tmp_path / f'{name}.json')
    assert read_results(tmp_path) == [one]


def test_fingerprint_of_a_held_out_part_is_of_its_own_files():
    parts = hold_out(dataset(), 0.5)
    renamed = hold_out(dataset(sources=('e.png', 'f.png', 'g.png', 'h.png')), 0.5)
    assert [fingerprint(part) for part in parts] == [fingerprint(part) for part in hold_out(dataset(), 0.5)]
    assert all(fingerprint(a) != fingerprint(b) for a, b in zip(parts, renamed))


def test_images_in_memory_have_no_file_name():
    assert fingerprint(dataset(sources=[np.zeros((2, 2), np.uint8)] * 4))['images'] == 4


def test_a_result_comes_back_as_it_was_written(tmp_path):
    write_result(
        tmp_path / 'a.json',
        dict(config=RUN.config, accuracy=0.1 + 0.2, name='prüfung', nothing=None, points=[(1, 2)]),
    )
    result = read_result(tmp_path / 'a.json')
    assert result == dict(
        config=dict(train=dict(lr=1e-3), ranks={'0': 4, '10': 8}),
        accuracy=0.1 + 0.2,
        name='prüfung',
        nothing=None,
        points=[[1, 2]],
        format=1,
    )


def test_any_byte_that_changes_any_cut_and_any_addition_is_noticed(tmp_path):
    path = tmp_path / 'a.json'
    write_result(path, dict(accuracy=0.5, name='né', nested=dict(list=[1, 2])))
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i])
        assert read_result(path) is None, f'cut at {i}'
        for other in (whole[i] ^ 1, ord(' '), ord('9')):
            path.write_bytes(whole[:i] + bytes([other]) + whole[i + 1 :])
            assert other == whole[i] or read_result(path) is None, (i, other)
        path.write_bytes(whole[:i] + b' ' + whole[i:])
        assert read_result(path) is None, f'a space at {i}'
    path.write_bytes(whole)
    assert read_result(path)['accuracy'] == 0.5


@pytest.mark.parametrize('text', ['', '[]', '1', '{}', 'null', '{"checksum": 1}'])
def test_what_is_no_result_is_none(tmp_path, text):
    (tmp_path / 'a.json').write_text(text)
    assert read_result(tmp_path / 'a.json') is None


def test_a_result_that_was_edited_is_made_again_and_no_other(unbroken, tmp_path):
    shutil.copytree(unbroken / 'results', tmp_path / 'results')
    edited, cut, *others = sorted((tmp_path / 'results/tiny').glob('*.json'))
    edited.write_text(edited.read_text().replace('"status": "done"', '"status": "done" '))
    cut.write_bytes(cut.read_bytes()[:-100])
    before = [path.stat().st_mtime_ns for path in others]
    made = []
    campaign(
        tmp_path, lambda jobs: made.extend(job.result for job in jobs), (unbroken / 'tiny.py').read_text()
    ).run()
    assert sorted(made) == [str(edited), str(cut)]
    assert before == [path.stat().st_mtime_ns for path in others]


def test_a_result_says_how_it_was_obtained(unbroken):
    found = results(unbroken)
    assert list(found) == [f'few.vit.{tuner}.seed{seed}' for tuner in ('bias', 'linear') for seed in (0, 1)]
    result = found['few.vit.linear.seed1']
    suite = load_suite(unbroken / 'tiny.py')
    assert result['config'] == suite.cells('few.vit.linear')[0].runs()[1].config
    assert result['parameters'] | dict(backbone=0, total=0) == dict(
        tuners=0, head=130, trainable=130, backbone=0, total=0
    )
    assert (result['status'], result['epochs'], result['seed'], result['selected']) == (
        'done',
        1,
        1,
        'last epoch',
    )
    images, wrong = np.array(result['images_by_class']), sum(count for *_, count in result['confusion'])
    assert result['data']['test']['images'] == images.sum()
    assert result['metrics']['accuracy'] == pytest.approx((images * result['per_class']).sum() / images.sum())
    assert result['metrics']['accuracy'] == pytest.approx(1 - wrong / images.sum())
    assert result['curves'][-1]['step'] == result['steps'] and result['environment']['packages']['torch']
