"""The head made from text embeddings: zero-shot before training, training from there, folders without paths,
and the curve of WiSE-FT.
"""

import argparse
import json

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tests.engine.runs import build, config
from vet import pipeline
from vet.cli.interpolate import curve
from vet.cli.test import evaluate
from vet.errors import DataError, UserError
from vet.hub.interpolation import interpolated
from vet.hub.model_folder import load_model
from vet.registry import BACKBONES, HEADS

NAMES = ['5', '6', '7', '8', '9']
C = 64


def head_of(file, **options):
    return HEADS.build(
        dict(type='Text', num_classes=5, file=str(file), **options), in_features=C, names=NAMES
    )


@pytest.fixture
def vectors():
    return torch.randn(5, C, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def files(tmp_path, vectors):
    """The embeddings in each kind of file. Files with names have another order, and a class too many."""
    named = {name: vectors[i].clone() for i, name in reversed(list(enumerate(NAMES)))} | dict(
        other=vectors[0] * 2
    )
    save_file(named, tmp_path / 'e.safetensors')
    np.save(tmp_path / 'e.npy', vectors.numpy())
    (tmp_path / 'e.json').write_text(json.dumps({name: value.tolist() for name, value in named.items()}))
    return {suffix: tmp_path / f'e.{suffix}' for suffix in ('safetensors', 'npy', 'json')}


@pytest.mark.parametrize('suffix', ['safetensors', 'npy', 'json'])
def test_logits_are_scaled_cosines(files, vectors, suffix):
    features = torch.randn(3, C)
    wanted = 50 * F.cosine_similarity(features[:, None], vectors, dim=-1)
    torch.testing.assert_close(head_of(files[suffix], scale=50.0)(features), wanted)


@pytest.mark.parametrize(
    'write, text',
    [
        (lambda path: path.write_text('{"5": [1.0]}'), r"no embedding of '6' \(4 of 5 classes"),
        (lambda path: path.write_text('no json'), 'holds no embeddings'),
        (
            lambda path: path.write_text(json.dumps(dict.fromkeys(NAMES, [1.0, 2.0]))),
            r'shape \(5, 2\).*64 features.*classifier=True',
        ),
        (
            lambda path: path.write_text(json.dumps(dict.fromkeys(NAMES, [float('nan'), *[1.0] * (C - 1)]))),
            'have 5 numbers that are not finite. Write the file again',
        ),
        (lambda path: path.write_text('null'), 'holds no embeddings'),
        (lambda path: None, 'cannot be read'),
    ],
)
def test_wrong_files_are_refused(tmp_path, write, text):
    path = tmp_path / 'wrong.json'
    write(path)
    with pytest.raises(UserError, match=text):
        head_of(path)


@pytest.mark.parametrize('array', [None, np.ones((5, C), complex), np.full((5, C), 'a')])
def test_arrays_that_hold_no_numbers_are_refused(tmp_path, array):
    path = tmp_path / 'wrong.npy'
    path.touch() if array is None else np.save(path, array)
    with pytest.raises(DataError, match='wrong.npy. holds no embeddings'):
        head_of(path)


@pytest.mark.parametrize(
    'options, text',
    [
        (dict(file='a.npy', tower='ViT-B-32'), 'a file and a tower'),
        (dict(file='a.txt'), r'allowed: \.safetensors'),
        (dict(tower='ViT-B-32'), 'needs tower_weights'),
        (dict(tower='ViT-B-32', tower_weights='no-such-weights'), 'OpenCLIP cannot make'),
        (dict(tower='ViT-B-32', tower_weights='x', prompts=['a photo']), 'without {}'),
    ],
)
def test_wrong_arguments_are_refused(options, text):
    with pytest.raises(UserError, match=text):
        HEADS.build(dict(type='Text', num_classes=5, **options), in_features=C, names=NAMES)


@pytest.mark.parametrize(
    'head, text',
    [
        (
            dict(type='Text'),
            "the head 'Text' has no text embedding of the class '5': 5 of 5 are zero. Give model.head.file",
        ),
        (
            dict(type='TipAdapter', file='a.npy'),
            "the head 'TipAdapter' has no text embedding of the class '7': 1 of 5",
        ),
    ],
)
def test_a_training_without_a_text_of_each_class_is_refused(files, tmp_path, monkeypatch, head, text):
    monkeypatch.chdir(tmp_path)
    np.save('a.npy', np.diag([1.0, 1, 0, 1, 1])[:, [0] * (C - 4) + [1, 2, 3, 4]])
    with pytest.raises(UserError, match=text):
        run_of(tmp_path / 'run', files, **{'model.head': head}).train()


def run_of(folder, files, **options):
    made = {'model.head': dict(type='Text', file=str(files['safetensors'])), 'evaluation.select': 'best'}
    return build(folder, **{'train.max_epochs': 1} | made | options)


@pytest.fixture
def width():
    return BACKBONES.build(dict(type='DigitsViT')).num_features


@pytest.mark.slow
def test_a_run_begins_with_zero_shot_and_its_folder_needs_no_file(files, tmp_path, width, python):
    assert width == C
    trainer = run_of(tmp_path / 'run', files)
    start = trainer.evaluate()['accuracy']
    summary = trainer.train()
    assert summary['before']['accuracy'] == start < summary['accuracy']  # LoRA starts as the identity
    for path in files.values():
        path.unlink()
    saved = json.loads((tmp_path / 'run' / 'output' / 'configuration.json').read_text())
    assert saved['model']['head'] == dict(type='Text')
    done = python('-m', 'vet', 'test', tmp_path / 'run', '--quiet')
    assert json.loads(done.stdout)['accuracy'] == summary['accuracy']
    image = trainer.data['test'][0][0]
    assert pipeline(model=tmp_path / 'run')(image)['labels'][0] in NAMES


def test_a_folder_may_name_no_file(files, tmp_path):
    trainer = run_of(tmp_path / 'run', files, **{'train.max_epochs': 0})
    trainer.train()
    path = tmp_path / 'run' / 'output' / 'configuration.json'
    saved = json.loads(path.read_text())
    saved['model']['head']['file'] = '/etc/passwd'
    path.write_text(json.dumps(saved))
    with pytest.raises(DataError, match='file'):
        load_model(path.parent)


def test_the_curve_of_wise_ft_has_both_ends(files, tmp_path):
    trainer = run_of(
        tmp_path / 'run', files, **{'model.tuners': [dict(type='LoRA', rank=4), dict(type='BitFit')]}
    )
    summary = trainer.train()
    given = dict(
        model=str(tmp_path / 'run'), imports=[], cfg_options=None, device='cpu', data_root=None, backbone=None
    )
    given['out'] = None
    found = curve(argparse.Namespace(alphas=[0.0, 0.5, 1.0], split='test', **given))
    assert [point['alpha'] for point in found] == [0, 0.5, 1]
    assert found[0]['accuracy'] == summary['before']['accuracy']
    assert found[2]['accuracy'] == summary['accuracy']
    assert evaluate(argparse.Namespace(split='test', knn=None, **given))['accuracy'] == summary['accuracy']

    untuned, tuned = run_of(tmp_path / 'untuned', files).model.eval(), load_model(tmp_path / 'run' / 'output')
    images = torch.stack([trainer._view[None](trainer.data['test'][i][0]) for i in range(20)])
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    with torch.no_grad():
        ends = [model(images).softmax(1) for model in (untuned, tuned)]
        for alpha, end in zip((0.0, 1.0), ends):
            with interpolated(tuned, alpha):
                assert tuned(images).softmax(1).equal(end)
        with interpolated(tuned, 1 - 1e-7):  # as at the end, but with merged weights
            torch.testing.assert_close(tuned(images).softmax(1), ends[1], rtol=0, atol=1e-5)
        layer = tuned.backbone.network.get_submodule('blocks.0.attn.qkv')
        frozen = layer.weight.double()
        tuned.merge()
        merged = layer.weight.double()
        tuned.unmerge()
        with interpolated(tuned, 0.3):
            found = layer.weight.clone()
    assert found.equal(((1 - 0.3) * frozen + 0.3 * merged).float())  # rounded once
    assert not frozen.equal(merged)
    after = tuned.state_dict()
    assert all(after[name].equal(value) for name, value in before.items())


@pytest.mark.slow
def test_a_folder_of_one_alpha_gives_the_outputs_between(files, tmp_path):
    trainer = run_of(tmp_path / 'run', files)
    trainer.train()
    given = dict(imports=[], cfg_options=None, device='cpu', data_root=None, backbone=None, split='test')
    given |= dict(model=str(tmp_path / 'run'), out=str(tmp_path / 'half'))
    with pytest.raises(UserError, match='the folder of one model. Give one number to --alphas'):
        curve(argparse.Namespace(alphas=[0.5, 1.0], **given))
    [measured] = curve(argparse.Namespace(alphas=[0.4], **given))
    half, tuned = (load_model(path).eval() for path in (tmp_path / 'half', tmp_path / 'run' / 'output'))
    images = torch.stack([trainer._view[None](trainer.data['test'][i][0]) for i in range(20)])
    with torch.no_grad(), interpolated(tuned, 0.4):
        torch.testing.assert_close(half(images).softmax(1), tuned(images).softmax(1), rtol=0, atol=1e-5)
    assert measured['accuracy'] == pytest.approx(
        evaluate(argparse.Namespace(knn=None, **given | dict(model=str(tmp_path / 'half'))))['accuracy'],
        abs=0.01,
    )


def test_every_alpha_is_checked_before_the_model_is_read():
    with pytest.raises(UserError, match='alpha is nan; allowed: 0'):
        curve(argparse.Namespace(alphas=[0.5, float('nan')], model='none'))


def test_what_has_no_weights_between_is_refused(files, tmp_path):
    model = run_of(tmp_path / 'run', files, **{'model.tuners': [dict(type='VPT', length=2)]}).model
    with pytest.raises(UserError, match='VPT cannot be merged'), interpolated(model, 0.5):
        pass
    with pytest.raises(UserError, match='alpha is 1.5; allowed: 0'), interpolated(model, 1.5):
        pass


@pytest.mark.slow
def test_the_tower_of_open_clip_makes_the_embeddings(tmp_path):
    torch.manual_seed(0)
    clip = open_clip.create_model('ViT-B-32', pretrained=None).eval()
    torch.save(clip.state_dict(), tmp_path / 'clip.pt')
    prompts = ['a photo of a {}.', 'a drawing of the {}.']
    head = HEADS.build(
        dict(
            type='Text',
            num_classes=2,
            tower='ViT-B-32',
            tower_weights=str(tmp_path / 'clip.pt'),
            prompts=prompts,
        ),
        in_features=512,
        names=['cat', 'big_dog'],
    )
    tokens = open_clip.get_tokenizer('ViT-B-32')
    with torch.no_grad():
        texts = F.normalize(clip.encode_text(tokens([prompt.format('big dog') for prompt in prompts])), dim=1)
    torch.testing.assert_close(head.start[1], F.normalize(texts.mean(0), dim=0), rtol=1e-4, atol=1e-5)


def test_a_config_gives_no_names(files, tmp_path):
    made = config(**{'model.head': dict(type='Text', file=str(files['npy']), names=['a'])})
    with pytest.raises(UserError, match='leave it out.*the dataset gives the names'):
        build(tmp_path / 'run', **{'model.head': made['model']['head']})


def tip_adapter(file, **options):
    entry = dict(type='TipAdapter', num_classes=5, file=str(file), **options)
    return HEADS.build(entry, in_features=C, names=NAMES)


def test_tip_adapter_adds_a_cache_of_training_images(files, vectors):
    head = tip_adapter(files['npy'], shots=3, alpha=2.0, beta=4.0)
    draw = torch.Generator().manual_seed(1)
    features, labels = torch.randn(13, C, generator=draw), torch.arange(13) % 4  # none of the last class
    head.fit(features, torch.eye(5)[labels])
    wanted = 100 * F.cosine_similarity(features[:, None], vectors, dim=-1)
    for one, row in zip(features, wanted):
        for label in range(4):
            for key in features[labels == label][:3]:
                row[label] += 2 * torch.exp(-4 * (1 - F.cosine_similarity(one, key, dim=0)))
    torch.testing.assert_close(head(features).detach(), wanted, atol=1e-3, rtol=1e-4)
    assert head(features)[:, 4].allclose(100 * F.cosine_similarity(features, vectors[4]), atol=1e-3)
    assert {name for name, value in head.named_parameters() if value.requires_grad} == {'keys'}


def test_before_the_fit_tip_adapter_is_zero_shot(files):
    features = torch.randn(3, C)
    torch.testing.assert_close(tip_adapter(files['npy'])(features), head_of(files['npy'])(features))


@pytest.mark.parametrize('epochs', [0, 1])
@pytest.mark.slow
def test_tip_adapter_is_a_whole_training(tmp_path, files, epochs):
    head = dict(type='TipAdapter', file=str(files['npy']), shots=4, alpha=1e4)  # the texts are random here
    tuners = [dict(type='LinearProbe')]
    trainer = run_of(
        tmp_path / 'run', files, **{'model.head': head, 'model.tuners': tuners, 'train.max_epochs': epochs}
    )
    summary = trainer.train()
    assert summary['accuracy'] > 0.4  # by chance 0.2
    found = trainer.model.head
    assert found.filled.all() and torch.equal(found.start, found.weight.cpu())
    lengths = found.keys.norm(dim=2)
    assert torch.allclose(lengths, torch.ones(5, 4), atol=1e-5) == (epochs == 0)
    loaded = load_model(tmp_path / 'run' / 'output')
    assert torch.equal(loaded.head.keys, found.keys) and torch.equal(loaded.head.weight, found.weight)
