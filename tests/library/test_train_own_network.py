"""build_trainer(network=…) trains a user's own network; vet.load and pipeline open what it saves."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import Dataset

import vet
from tests.library.networks import same, state_of, vit
from tests.library.test_modes_and_buffers import Changing
from tests.own_nets import TRANSFORMERS
from vet.core.coverage import report
from vet.datasets.digits import Digits
from vet.errors import DataError, UserError

QUICK = {'train.max_epochs': 1, 'evaluation.before': False}


class Stopping(Dataset):
    """Digits as a user's own dataset, whose reader presses Ctrl-C at one image."""

    left: int | None = None
    classes = list('56789')

    def __init__(self):
        pixels, labels = load_digits(return_X_y=True)
        self.pixels = (16 * pixels[labels > 4][:256].reshape(-1, 8, 8)).clip(max=255).astype(np.uint8)
        self.targets = [int(label) - 5 for label in labels[labels > 4][:256]]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        if Stopping.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        if Stopping.left is not None:
            Stopping.left -= 1
        return Image.fromarray(self.pixels[index]).convert('RGB'), self.targets[index]


def digits_vit(**settings):
    sizes = dict(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2)
    return vit(**sizes, **settings)


def trainer_of(network, work_dir, **given):
    data = {split: Digits(split=split, digits=range(5, 10)) for split in ('train', 'test')}
    defaults = dict(
        tuners=[vet.LoRA(rank=2)],
        train_dataset=data['train'],
        eval_dataset=data['test'],
        work_dir=work_dir,
        cfg_options=QUICK,
        device='cpu',
    )
    return vet.build_trainer(network=network, **(defaults | given))


def test_the_folder_opens_by_load_and_by_pipeline(tmp_path):
    trainer = trainer_of(digits_vit(), tmp_path / 'work')
    summary = trainer.train()
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = trainer.model.eval()(images)
    assert not torch.equal(expected, digits_vit()(images))
    tuned = vet.load(summary['output'], digits_vit()).eval()
    assert torch.equal(tuned(images), expected)
    fresh = digits_vit()
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    classify = vet.pipeline(model=summary['output'], network=fresh, device='cpu')
    assert torch.equal(classify.model.eval()(images), expected)
    assert classify(np.zeros((8, 8, 3), dtype=np.uint8))['labels'][0] in trainer.model.classes
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())


def test_the_classifier_and_the_tuners_train_and_nothing_else(tmp_path):
    trainer = trainer_of(digits_vit(), tmp_path, train='norm')
    thawed = {name.partition('thawed.')[2] for name in trainer.model.trainable()} - {''}
    assert thawed == {'head.weight', 'head.bias', 'norm.weight', 'norm.bias'}
    assert trainer.model.count()['trainable'] == 2 * 2 * (16 + 48) + 16 * 5 + 5 + 2 * 16


@pytest.mark.slow
def test_a_run_goes_on_after_a_stop(tmp_path):
    options = QUICK | {'train.dataloader.workers_per_gpu': 0, 'train.max_epochs': 2}
    data = dict(train_dataset=Stopping(), cfg_options=options)
    whole = trainer_of(digits_vit(), tmp_path / 'whole', **data)
    whole.train()
    stopped = trainer_of(digits_vit(), tmp_path / 'parts', **data)
    Stopping.left = 300
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    Stopping.left = None
    again = trainer_of(digits_vit(), tmp_path / 'parts', resume='auto', **data)
    again.train()
    for name, tensor in whole.model.trained_state().items():
        assert torch.equal(tensor, again.model.trained_state()[name]), name


RELOAD = """
import sys, torch, vet
from tests.library.test_train_own_network import Moving
tuned = vet.load(sys.argv[1], Moving()).eval()
scores = tuned(torch.load(sys.argv[2]))
torch.save([tuned.network.state_dict(), scores], sys.argv[3])
"""


class Moving(Changing):
    """In training, its forward changes a counter, a running mean, and the vectors of a spectral norm."""

    def forward(self, x):
        kept = self.count.clone(), self.mean.clone()
        out = super().forward(x)
        if not self.training:
            self.count, self.mean = kept
        return out


@pytest.mark.slow
def test_buffers_that_the_forward_changes_are_saved(tmp_path):
    start = state_of(Moving())
    sizes = dict(size=(16, 16))
    trainer = trainer_of(
        Moving(),
        tmp_path / 'work',
        tuners=[vet.LoRA(2, at='fc')],
        train=['fc', 'bn', 'own'],
        preprocessing=sizes,
    )
    output = trainer.train()['output']
    images, network = torch.randn(3, 3, 16, 16), trainer.model.eval().backbone.network
    state = state_of(network)
    moved = {name for name in state if not torch.equal(state[name], start[name])}
    assert {'count', 'mean', 'c.parametrizations.weight.0._u', 'bn.running_mean'} <= moved
    torch.save(images, tmp_path / 'images')
    subprocess.run(
        [sys.executable, '-c', RELOAD, output, tmp_path / 'images', tmp_path / 'out'],
        check=True,
        env=os.environ,
    )
    loaded, scores = torch.load(tmp_path / 'out')
    assert torch.equal(scores, trainer.model(images))
    assert same(loaded, state)


@pytest.mark.slow
def test_a_network_of_transformers_gives_its_logits(tmp_path):
    torch.manual_seed(0)
    network = TRANSFORMERS['vit']()
    trainer = trainer_of(network, tmp_path)
    output = trainer.train()['output']
    images = torch.randn(2, 3, 32, 32)
    torch.manual_seed(0)
    tuned = vet.load(output, TRANSFORMERS['vit']()).eval()
    assert torch.equal(tuned(pixel_values=images).logits, trainer.model.eval()(images))


def test_refusals_name_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match='gives 7 logits, but the dataset has 5 classes'):
        trainer_of(digits_vit(num_classes=7), tmp_path)
    with pytest.raises(UserError, match=r'gives \(.*\) per image.*build it with a classifier'):
        trainer_of(digits_vit(num_classes=0, global_pool=''), tmp_path)
    with pytest.raises(UserError, match=r'tuners=\[vet.LoRA\(rank=8\)\]'):
        trainer_of(digits_vit(), tmp_path, tuners=None)
    with pytest.raises(UserError, match='a tuner is 8'):
        trainer_of(digits_vit(), tmp_path, tuners=[8])
    with pytest.raises(UserError, match='net is 3'):
        trainer_of(3, tmp_path)
    with pytest.raises(UserError, match='tuners belongs to network=…'):
        vet.build_trainer(model='x.py', tuners=[vet.LoRA(2)])


def test_another_network_is_refused(tmp_path):
    output = trainer_of(digits_vit(), tmp_path).train()['output']
    with pytest.raises(DataError, match='shapes differ'):
        vet.pipeline(model=output, network=digits_vit(mlp_ratio=2.0))
    other = digits_vit()
    with torch.no_grad():
        other.blocks[0].attn.qkv.weight.add_(1)
    with pytest.raises(DataError, match='blocks.0.attn.qkv.weight'):
        vet.pipeline(model=output, network=other)
    with pytest.raises(DataError, match=r'vet.pipeline\(folder, network=network\)'):
        vet.pipeline(model=output)


@pytest.mark.parametrize('names', [['head'], ['norm', 'head']])
def test_no_line_tells_of_the_classifier(names, tmp_path):
    trainer = trainer_of(digits_vit(), tmp_path, tuners=[vet.Partial(names=names), vet.LoRA(rank=2)])
    lines, shortfalls = report(trainer.model.tuners)
    assert [line.split()[0] for line in lines] == ['Partial'] * (names != ['head']) + ['LoRA']
    assert not shortfalls
    thawed = {name.partition('thawed.')[2].partition('.')[0] for name in trainer.model.trainable()} - {''}
    assert thawed == set(names)
