"""The model folder: all that is needed beside the backbone's weights, and nothing in it that runs."""

import json
import shutil

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vet import build_trainer, pipeline
from vet.builders import find_config
from vet.core.assemble import build_classifier
from vet.errors import DataError, UserError
from vet.hub.export import export
from vet.hub.model_folder import load_model, save_model
from vet.registry import BACKBONES

VIT = dict(img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=2)


@pytest.fixture
def folder(trainer, tmp_path):
    """A copy of the model folder, elsewhere, and nothing beside it."""
    return shutil.copytree(trainer.folder.output, tmp_path / 'copy')


@pytest.fixture
def edited(folder):
    """edited(key=value, …) writes a changed configuration.json; a key of None is left out."""

    def edit(**changes):
        path = folder / 'configuration.json'
        configuration = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in configuration.items() if value is not None}))
        return folder

    return edit


def refused(folder, message, **options):
    with pytest.raises(DataError, match=message) as caught:
        pipeline('vision-efficient-tuning', folder, device='cpu', **options)
    assert '\n' not in str(caught.value)


def classify(folder, images, answers):
    """Of a child process: writes the answers for the images of a folder as JSON, which keeps every digit."""
    torch.set_num_threads(1)
    paths = [str(images / f'{i}.png') for i in range(8)]
    found = pipeline('vision-efficient-tuning', folder, device='cpu')(paths, batch_size=8)
    answers.write_text(json.dumps(found))


def test_a_new_process_gives_the_trainers_scores(trainer, folder, process, tmp_path):
    images = [trainer.data['test'][i][0] for i in range(8)]
    for i, image in enumerate(images):
        image.save(tmp_path / f'{i}.png')
    child = process(classify, folder, tmp_path, tmp_path / 'answers.json')
    child.join()
    assert child.exitcode == 0
    assert json.loads((tmp_path / 'answers.json').read_text()) == trainer.predict(images, topk=5)
    assert sorted(path.name for path in folder.iterdir()) == ['configuration.json', 'tuner.safetensors']


IMPORTED = """
import sys
from vet import pipeline
print([name for name in ('timm', 'sklearn', 'scipy', 'vet.engine.trainer') if name in sys.modules])
pipeline(model=sys.argv[1], device='cpu')(sys.argv[2])
print([name for name in ('sklearn', 'scipy', 'matplotlib', 'vet.engine.trainer') if name in sys.modules])
"""


def test_answers_need_no_training_and_no_statistics(trainer, folder, tmp_path, python):
    trainer.data['test'][0][0].save(tmp_path / 'image.png')
    assert python('-c', IMPORTED, folder, tmp_path / 'image.png').stdout == '[]\n[]\n'


def test_it_is_small_and_holds_what_was_trained(trainer, folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) < 60_000
    tensors = load_file(folder / 'tuner.safetensors')
    assert set(tensors) == set(trainer.model.trained_state())
    assert (
        sum(tensor.numel() for tensor in tensors.values())
        == trainer.model.count()['trainable']
        == 6 * 8 * (64 + 192) + 65 * 5
    )


@pytest.mark.parametrize(
    'key, value',
    [('_base_', ['ran.py']), ('custom_imports', dict(imports=['ran'])), ('env_variables', dict(VET_RAN=1))],
)
def test_what_could_run_code_is_refused_and_does_not_run(edited, key, value, monkeypatch, tmp_path):
    folder = edited(**{key: value})
    for place in (folder, tmp_path):
        (place / 'ran.py').write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    refused(folder, f"asks for '{key}', which could run code")
    with pytest.raises(DataError, match=key):
        find_config(folder)
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    'text, message',
    [
        ('{"model": ', 'not valid JSON'),
        ('\0', 'not valid JSON'),
        ('[]', 'not the configuration of a vet model'),
        ('{}', 'model.backbone, model.tuners'),
        ('{"model": {"backbone": 3, "tuners": [], "head": {}}, "classes": []}', 'not the configuration'),
    ],
)
def test_broken_configuration(folder, text, message):
    (folder / 'configuration.json').write_text(text)
    refused(folder, message)


def test_missing_files(folder, tmp_path):
    refused(tmp_path / 'nothing', 'does not exist')
    (folder / 'tuner.safetensors').unlink()
    refused(folder, 'tuner.safetensors.* cannot be read.*Copy the model folder again')
    (folder / 'configuration.json').unlink()
    refused(folder, 'is no model folder')


def test_truncated_tensors(folder):
    path = folder / 'tuner.safetensors'
    data = path.read_bytes()
    for kept in (0, 4, 100, len(data) - 1):
        path.write_bytes(data[:kept])
        refused(folder, 'tuner.safetensors.* cannot be read')


def test_missing_extra_and_misshaped_tensors(folder):
    path, tensors = folder / 'tuner.safetensors', load_file(folder / 'tuner.safetensors')
    for wrong, message in (
        ({k: v for k, v in tensors.items() if k != 'head.fc.bias'}, "'head.fc.bias' .given nothing"),
        ({**tensors, 'extra': torch.zeros(2)}, "'extra' .given .2,., needed nothing"),
        ({**tensors, 'head.fc.bias': torch.zeros(4)}, r"'head.fc.bias' \(given \(4,\), needed \(5,\)"),
    ):
        save_file(wrong, path)
        refused(folder, f'does not fit this model at 1 tensors, such as {message}')


def test_other_backbone_weights(edited):
    refused(
        edited(
            model=dict(
                backbone=dict(type='DigitsViT', pretrained=False, sha256='0' * 64),
                tuners=[],
                head=dict(type='Linear'),
            )
        ),
        'not the backbone weights that were tuned: DigitsViT with sha256 000',
    )


def test_unknown_plugins(edited, trainer):
    model = json.loads((trainer.folder.output / 'configuration.json').read_text())['model']
    with pytest.raises(UserError, match="unknown tuner 'Mine'.*registers when its module is imported"):
        pipeline(model=edited(model=model | dict(tuners=[dict(type='Mine')])))


@pytest.fixture(scope='module')
def vit(tmp_path_factory):
    """(work folder's trainer, weight file) of a timm ViT whose weights are a file."""
    home = tmp_path_factory.mktemp('vit')
    torch.manual_seed(1)
    save_file(
        timm.create_model('vit_tiny_patch16_224', num_classes=0, **VIT).state_dict(),
        home / 'weights.safetensors',
    )
    backbone = dict(
        type='timm',
        name='vit_tiny_patch16_224',
        checkpoint=str(home / 'weights.safetensors'),
        kwargs=VIT,
        lora_length=2,
    )
    trainer = build_trainer(
        model=dict(
            model=dict(backbone=backbone),
            dataset=dict(train=dict(type='Digits', split='test')),
            train=dict(
                max_epochs=1, dataloader=dict(workers_per_gpu=0), transform=[dict(type='EvaluationCrop')]
            ),
        ),
        work_dir=home / 'work',
        device='cpu',
    )
    trainer.train()
    return trainer, home / 'weights.safetensors'


def test_a_folder_has_images_of_another_size_where_the_network_takes_them(tmp_path):
    """A ConvNet takes images of any size, and the size of the folder counts."""
    small = dict(layers=(1, 1, 1, 1), channels=(8, 8, 8, 8))
    network = timm.create_model('resnet18', num_classes=0, **small)
    save_file(network.state_dict(), tmp_path / 'weights.safetensors')
    entry = dict(type='timm', name='resnet18', checkpoint=str(tmp_path / 'weights.safetensors'), kwargs=small)
    backbone = BACKBONES.build(entry)
    backbone.preprocessing = backbone.preprocessing.with_changes(dict(size=48))
    model = build_classifier(backbone, [dict(type='NormTune')], dict(type='Linear'), ['a', 'b']).eval()
    settings = dict(model=dict(tuners=[dict(type='NormTune')], head=dict(type='Linear'), tasks={}), seed=0)
    settings |= dict(dataset={}, train={}, evaluation={})
    save_model(model, tmp_path / 'model', dict(settings=settings, metrics=dict(accuracy=0.5)))
    opened = load_model(tmp_path / 'model')
    assert opened.backbone.preprocessing.size == (48, 48) != BACKBONES.build(entry).preprocessing.size
    torch.testing.assert_close(opened(torch.ones(1, 3, 48, 48)), model(torch.ones(1, 3, 48, 48)))


@pytest.mark.slow
def test_weights_that_have_moved(vit, tmp_path):
    trainer, weights = vit
    image = Image.new('RGB', (40, 30), 'orange')
    expected = trainer.predict([image], topk=5)[0]
    assert pipeline(model=trainer.folder.output, device='cpu')(image) == expected
    moved = weights.rename(tmp_path / 'elsewhere.safetensors')
    try:
        refused(
            trainer.folder.output,
            r'weights.safetensors. does not exist.*pipeline\(…, backbone=PATH\) or --backbone PATH',
        )
        assert pipeline(model=trainer.folder.output, backbone=moved, device='cpu')(image) == expected
        state = load_file(moved)
        save_file(state | {'norm.bias': state['norm.bias'] + 1e-3}, tmp_path / 'other.safetensors')
        refused(
            trainer.folder.output,
            'these are not the backbone weights.*vit_tiny_patch16_224 with sha256',
            backbone=tmp_path / 'other.safetensors',
        )
        save_file({'a': torch.zeros(1)}, tmp_path / 'foreign.safetensors')
        refused(
            trainer.folder.output,
            'weights of another architecture',
            backbone=tmp_path / 'foreign.safetensors',
        )
        refused(trainer.folder.output, 'does not exist', backbone=tmp_path / 'none.safetensors')
    finally:
        moved.rename(weights)


def test_export_writes_a_plain_network(vit, tmp_path):
    trainer, _ = vit
    export(trainer.folder.path, tmp_path / 'merged.safetensors')
    network = timm.create_model('vit_tiny_patch16_224', num_classes=0, **VIT).eval()
    network.load_state_dict(load_file(tmp_path / 'merged.safetensors'))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(network(x), load_model(trainer.folder.output).backbone(x), atol=1e-5)
