"""Systems that keep a pretrained classifier or put an MLP on a network: trained, resumed, reloaded and
merged; their configs.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.nets import VIT, images
from vet import pipeline
from vet.builders import build_trainer
from vet.datasets.image_folder import ImageFolder
from vet.errors import UserError
from vet.hub.export import export

CONFIGS = Path(__file__).parents[1] / 'configs'
REAL_DATA = Path(__file__).parents[2] / 'shared' / 'data'
KEPT = dict(
    type='timm',
    name='vit_tiny_patch16_224',
    pretrained=False,
    classifier=True,
    kwargs=dict(VIT, num_classes=6),
)
FEATURES = dict(
    type='timm',
    name='resnet18',
    pretrained=False,
    preprocessing=dict(size=64),
    kwargs=dict(layers=(1, 1, 1, 1), channels=(8, 16, 24, 32), global_pool='catavgmax'),
)
SYSTEMS = {
    'minlora': dict(
        backbone=KEPT, tuners=[dict(type='LoRA', rank=2, alpha=1, at='linear')], head=dict(type='Pretrained')
    ),
    'pixels': dict(backbone=KEPT, tuners=[dict(type='PixelBranch', rank=2)], head=dict(type='Pretrained')),
    'finetune': dict(backbone=FEATURES, tuners=[dict(type='Full')], head=dict(type='MLP', hidden=8)),
}


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    """seed-images/ as it is laid out, with 3 + 2 train and 1 + 1 test images of noise: dark jellyfish,
    light mushrooms.
    """
    root, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    for folder, count, low in [
        ('jellyfish-mushroom/train/jellyfish', 3, 0),
        ('jellyfish-mushroom/train/mushroom', 2, 128),
        ('jellyfish-mushroom/test/jellyfish', 1, 0),
        ('jellyfish-mushroom/test/mushroom', 1, 128),
        ('goldfish/goldfish', 5, 64),
    ]:
        (root / 'seed-images' / folder).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(low, low + 128, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / 'seed-images' / folder / f'{i}.png')
    return root


def build(system: str, work_dir: Path, data_root: Path, resume: str | None = None, **train: object):
    labels = (
        dict(classes=list('abcdef'), label_map=dict(jellyfish=4, mushroom=1))
        if 'Pretrained' in str(SYSTEMS[system])
        else {}
    )
    entry = dict(type='ImageFolder', path='seed-images/jellyfish-mushroom', **labels)
    loader = dict(batch_size_per_gpu=4, workers_per_gpu=0)  # the last batch of an epoch is one image
    settings = dict(
        dict(max_epochs=2, dataloader=loader, precision='fp32', optimizer=dict(type='AdamW', lr=1e-2)),
        **train,
    )
    config = dict(
        model=SYSTEMS[system],
        dataset=dict(train=dict(entry, split='train'), test=dict(entry, split='test')),
        train=settings,
        evaluation=dict(dataloader=loader),
    )
    return build_trainer(model=config, work_dir=work_dir, data_root=data_root, device='cpu', resume=resume)


@pytest.fixture(scope='module', params=SYSTEMS)
def finished(request, tmp_path_factory, data_root):
    trainer = build(request.param, tmp_path_factory.mktemp('run') / 'run', data_root)
    return request.param, trainer, trainer.train()


@pytest.mark.slow
def test_trained_and_reloaded_scores_agree(finished):
    system, trainer, summary = finished
    counted = summary['parameters']
    assert counted['tuners'] > 0 and (counted['head'] > 0) == (system == 'finetune')
    image = Image.fromarray(np.arange(40 * 40 * 3, dtype=np.uint8).reshape(40, 40, 3))
    again = pipeline('vision-efficient-tuning', trainer.folder.output, device='cpu')
    assert again(image, topk=6) == trainer.predict([image], topk=6)[0]
    names = set(load_file(trainer.folder.output / 'tuner.safetensors'))
    assert (
        {'head.layers.0.running_mean', 'head.layers.4.running_var'} <= names
        if system == 'finetune'
        else all(name.startswith('tuners.0.') for name in names)
    )


def test_resumed_run_ends_with_the_same_tensors(finished, tmp_path, data_root):
    system, trainer, summary = finished
    folder = shutil.copytree(trainer.folder.path, tmp_path / 'run')
    again = build(system, folder, data_root, str(folder / 'checkpoints' / 'step-00000002'))
    assert again.train()['steps'] == summary['steps'] == 4
    expected, found = (
        load_file(path / 'output' / 'tuner.safetensors') for path in (trainer.folder.path, folder)
    )
    assert expected.keys() == found.keys() and all(expected[name].equal(found[name]) for name in expected)


def test_minlora_merges_into_a_plain_network_with_its_classifier(tmp_path, data_root):
    trainer = build('minlora', tmp_path / 'run', data_root)
    trainer.train()
    export(tmp_path / 'run', tmp_path / 'plain.safetensors')
    plain = timm.create_model(KEPT['name'], num_classes=6, **VIT).eval()
    plain.load_state_dict(load_file(tmp_path / 'plain.safetensors'))
    x = images(3)
    with torch.no_grad():
        logits = trainer.model.eval()(x)
        assert torch.allclose(plain(x), logits, rtol=1e-5, atol=1e-6)
        trainer.model.tuners[0].detach()
        assert not torch.allclose(trainer.model(x), logits, atol=1e-3)


def test_bf16_trains_with_the_heads_in_float32(tmp_path, data_root):
    for system in ('minlora', 'finetune'):
        trainer = build(system, tmp_path / system, data_root, precision='bf16', accumulate=2)
        assert trainer.train()['steps'] == 2
        assert trainer.model(images(2, 32 if system == 'minlora' else 64)).dtype == torch.float32


def test_classifier_without_tuners_has_nothing_to_train(tmp_path, data_root, monkeypatch):
    monkeypatch.setitem(SYSTEMS, 'none', dict(SYSTEMS['minlora'], tuners=[]))
    with pytest.raises(UserError, match='nothing trains'):
        build('none', tmp_path / 'run', data_root).train()


def test_dataset_of_other_classes_is_refused(tmp_path, data_root, monkeypatch):
    monkeypatch.setitem(
        SYSTEMS, 'other', dict(SYSTEMS['minlora'], backbone=dict(KEPT, kwargs=dict(VIT, num_classes=7)))
    )
    with pytest.raises(UserError, match='gives 7 numbers per image, but the dataset has 6 classes'):
        build('other', tmp_path / 'run', data_root)


# Configs -----------------------------------------------------------------------------------------------------------


SMALL = {'model.backbone.pretrained': False, 'model.backbone.preprocessing.size': 32}
RUNS = [
    # config, changes, parameters of the tuners, outputs
    ('minlora_jellyfish_mushroom', SMALL, 16 * (1280 + 1001), 1001),
    pytest.param('minlora_conv_jellyfish_mushroom', SMALL, 414_016, 1001, marks=pytest.mark.slow),
    (
        'resnet50_minlora_jellyfish_mushroom',
        {'model.backbone.pretrained': False, 'model.backbone.preprocessing': dict(size=32)},
        48_768,
        1000,
    ),
    ('deit_tiny_pixels_goldfish', {'model.backbone.pretrained': False}, 1_515_280, 1000),
    pytest.param(
        'deit_tiny_peft_names_jellyfish_mushroom',
        {'model.backbone.pretrained': False},
        12 * 16 * (192 + 576),
        2,
        marks=pytest.mark.slow,
    ),
    pytest.param(
        'finetune_jellyfish_mushroom',
        SMALL | {'train.max_epochs': 2, 'train.stages': [dict(epochs=1, train=r'head\..*'), dict(epochs=1)]},
        2_206_816,
        2,
        marks=pytest.mark.slow,
    ),
    pytest.param(
        'vgg19_pixels_goldfish', {'model.backbone.pretrained': False}, 1_515_280, 1000, marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize('name, changes, parameters, outputs', RUNS)
def test_config_runs_with_random_weights(name, changes, parameters, outputs, tmp_path, data_root):
    changes = {
        'train.max_epochs': 1,
        'evaluation.before': False,
        'train.threads': 1,
        'train.precision': 'fp32',
    } | changes
    trainer = build_trainer(
        model=CONFIGS / f'{name}.py',
        work_dir=tmp_path / 'run',
        cfg_options=changes,
        data_root=data_root,
        device='cpu',
    )
    summary = trainer.train()
    assert summary['parameters']['tuners'] == parameters and len(trainer.model.classes) == outputs
    assert (tmp_path / 'run/output/tuner.safetensors').stat().st_size < 4 * summary['parameters'][
        'trainable'
    ] * 1.01 + 80_000
    # they start at zero
    assert all(value.any() for name, value in trainer.model.trained_state().items() if '.B' in name)


@pytest.mark.slow
def test_alexnet_config_runs_on_other_images_with_random_weights(tmp_path, data_root):
    train, test = (
        ImageFolder(data_root, split, 'seed-images/jellyfish-mushroom') for split in ('train', 'test')
    )
    changes = {
        'train.max_epochs': 1,
        'train.threads': 1,
        'train.dataloader.workers_per_gpu': 0,
        'evaluation.before': False,
        'evaluation.dataloader.workers_per_gpu': 0,
        'model.backbone.pretrained': False,
        'train.precision': 'fp32',
    }
    trainer = build_trainer(
        model=CONFIGS / 'alexnet_finetune_flowers.py',
        work_dir=tmp_path / 'run',
        cfg_options=changes,
        train_dataset=train,
        eval_dataset=test,
        device='cpu',
    )
    assert trainer.train()['parameters']['tuners'] == (256 * 384 + 256 * 256) * 9 + 512


def test_pretrained_classifier_knows_its_classes(tmp_path):
    """MobileNetV2 as it comes: 3 of 16 images of 64 pixels are right among 1,001 classes (0, were the
    labels off by one).
    """
    if not REAL_DATA.is_dir():
        pytest.skip(f'no real data in {REAL_DATA}')
    changes = {
        'model.backbone.checkpoint': str(REAL_DATA / 'weights/mobilenetv2_100.safetensors'),
        'train.precision': 'fp32',
    }
    trainer = build_trainer(
        model=CONFIGS / 'minlora_jellyfish_mushroom.py',
        work_dir=tmp_path / 'run',
        device='cpu',
        data_root=REAL_DATA,
        cfg_options=changes,
    )
    assert trainer.evaluate()['accuracy'] == 3 / 16
