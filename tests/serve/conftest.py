"""Fixtures: folders of every objective, and a server of them."""

import pytest

from tests.serve.folders import encoded, photo, save
from tests.serve.running import running


@pytest.fixture(scope='session')
def folders(tmp_path_factory):
    """{name: its model folder}, in one folder of models."""
    parent = tmp_path_factory.mktemp('models')
    linear, masks = dict(type='Linear'), dict(type='LinearMask')
    kinds = dict(
        one=dict(seed=1),
        two=dict(seed=2, names='xyz'),
        three=dict(seed=3, tuner=dict(type='Adapter', width=4)),
        prompts=dict(seed=4, tuner=dict(type='VPT', length=2)),
        several=dict(seed=5, objective=dict(type='MultiLabel')),
        numbers=dict(seed=6, names=['age', 'size'], objective=dict(type='Regression')),
        vector=dict(seed=7, objective=dict(type='Embedding'), head=dict(type='Embedding', size=8)),
        masks=dict(seed=8, names='abc', objective=dict(type='Segmentation'), head=masks),
        ranks=dict(seed=9, names='abcd', objective=dict(type='Ordinal')),
        views=dict(seed=10, evaluation=dict(tta=dict(flip=True))),
        tasks=dict(seed=11, tasks=('left', 'right'), head=linear),
    )
    return {name: save(parent / name, **kind) for name, kind in kinds.items()}


@pytest.fixture(scope='session')
def client(folders):
    with running(folders['one'].parent) as client:
        yield client


@pytest.fixture(scope='session')
def photos():
    return [encoded(photo(seed)) for seed in range(7)]
