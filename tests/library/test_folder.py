"""tuned.save and vet.load: a new process computes the same logits; another network is refused by name."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import vet
from tests.library.networks import VIT, images, trained, vit
from vet.errors import DataError


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A folder, and the logits of the network that was saved."""
    folder = tmp_path_factory.mktemp('library') / 'flowers'
    tuned = trained(vet.tune(vit(), vet.LoRA(rank=2, at=['attn.qkv', 'mlp.fc1']), vet.BitFit()))
    tuned.save(folder)
    return folder, tuned(images()).detach()


def reload(folder, path):
    """Of a child process: writes the logits of the loaded network."""
    torch.set_num_threads(1)
    save_file({'logits': vet.load(folder, vit())(images()).detach()}, path)


def test_a_new_process_gives_the_same_logits(saved, process, tmp_path):
    folder, logits = saved
    child = process(reload, folder, tmp_path / 'logits.safetensors')
    child.join()
    assert child.exitcode == 0
    assert torch.equal(load_file(tmp_path / 'logits.safetensors')['logits'], logits)


def test_the_folder_has_two_files_and_names_the_tuners(saved):
    folder, _ = saved
    assert sorted(path.name for path in folder.iterdir()) == ['configuration.json', 'tuner.safetensors']
    configuration = json.loads((folder / 'configuration.json').read_text())
    assert configuration['model']['tuners'] == [
        dict(type='LoRA', rank=2, at=['attn.qkv', 'mlp.fc1']),
        dict(type='BitFit'),
        dict(type='Partial', names=['head.weight']),
    ]
    assert configuration['classes'] == ['0', '1', '2', '3', '4']


def _with_other_weight():
    net = vit()
    with torch.no_grad():
        net.blocks[1].mlp.fc2.weight[3, 4] += 1e-6
    return net


OTHERS = [
    (lambda: timm.create_model('resnet10t'), 'tuned on a VisionTransformer, the network is a ResNet'),
    (lambda: vit(depth=3), "shapes differ. The first is that of 'blocks.2.norm1.weight': tuned without it"),
    (_with_other_weight, "1 of .* values differ. The first is that of 'blocks.1.mlp.fc2.weight'"),
    (lambda: vit(num_heads=4), "settings differ. The first is that of 'blocks.0.attn': tuned .*num_heads=2"),
    (lambda: vit(num_classes=6), r"that of 'head.weight': tuned float32 \[5, 32\], given float32 \[6, 32\]"),
]


@pytest.mark.parametrize('make, text', OTHERS, ids=[text for _, text in OTHERS])
def test_another_network_is_refused_by_what_differs(saved, make, text):
    with pytest.raises(DataError, match=text):
        vet.load(saved[0], make())


def test_dropout_and_another_classifier_make_no_other_network(saved):
    net = timm.create_model('vit_tiny_patch16_224', **VIT, num_classes=5, drop_path_rate=0.3, drop_rate=0.1)
    net.load_state_dict(vit().state_dict())
    torch.nn.init.ones_(net.head.weight)
    assert torch.equal(vet.load(saved[0], net.eval())(images()), saved[1])


def test_a_folder_of_the_config_door_is_refused(trainer):
    with pytest.raises(DataError, match='was not saved by tuned.save.* open it by vet.pipeline'):
        vet.load(trainer.folder.output, vit())


def test_a_loaded_set_keeps_the_classes_and_the_preprocessing_of_its_folder(tmp_path):
    settings = dict(flowers=dict(size=(32, 32), mean=(0.1, 0.2, 0.3)), birds=dict(crop_pct=0.5))
    for name, changes in settings.items():
        classes = [f'{name} {i}' for i in range(5)]
        vet.tune(vit(), vet.LoRA(2)).save(tmp_path / name, classes, changes)
    tuned = vet.load({name: tmp_path / name for name in settings}, vit())
    for name in settings:
        tuned.use(name)
        tuned.save(tmp_path / 'again')
        old, new = (
            json.loads((tmp_path / each / 'configuration.json').read_text()) for each in (name, 'again')
        )
        assert (new['classes'], new['preprocessing']) == (old['classes'], old['preprocessing'])
    tuned.save(tmp_path / 'again', ['Пион', *'bcde'], dict(mean=(0.4, 0.4, 0.4)))
    text = (tmp_path / 'again' / 'configuration.json').read_text(encoding='utf-8')
    new = json.loads(text)
    assert new['classes'] == ['Пион', *'bcde'] and 'Пион' in text  # a person can read the file
    assert new['preprocessing']['mean'] == [0.4] * 3 and new['preprocessing']['crop_pct'] == 0.5
    tuned.add('cars', vet.LoRA(2))
    tuned.save(tmp_path / 'cars')
    assert json.loads((tmp_path / 'cars' / 'configuration.json').read_text())['classes'] == list('01234')
