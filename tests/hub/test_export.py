"""Exports, read back by the libraries that they are for; and the folder that travels."""

import json
import logging
import os
import shutil

import numpy as np
import onnxruntime
import peft
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images
from torchvision import models

import vet
from tests.hub import test_modelscope_folders as modelscope
from tests.nets import VIT, images
from vet import pipeline
from vet.core.assemble import build_classifier
from vet.errors import DataError, TrainingError, UserError
from vet.hub.export import export
from vet.hub.formats import FORMATS
from vet.hub.model_folder import load_model, read_configuration, save_model
from vet.lock import FileLock
from vet.registry import BACKBONES

CLASSES = ['cat', 'dog, "small"', 'köttbulle']
RESNET = dict(
    type='timm',
    name='resnet18',
    pretrained=False,
    preprocessing=dict(size=32),
    kwargs=dict(layers=(1, 1, 1, 1), channels=(8, 16, 24, 32)),
)
TIMM_VIT = dict(type='timm', name='vit_tiny_patch16_224', pretrained=False, kwargs=VIT)
SMALL = dict(type='torchvision', name='shufflenet_v2_x0_5', pretrained=False, preprocessing=dict(size=32))
LORA, VPT = dict(type='LoRA', rank=2), dict(type='VPT', length=2)
SUFFIXES = {to: made.suffix for to, made in FORMATS.items()}


@pytest.fixture(autouse=True)
def _untraced(monkeypatch):
    # thousands of records, which pytest would keep
    monkeypatch.setattr(logging.getLogger('torch.__trace'), 'propagate', False)


@pytest.fixture
def saved(tmp_path):
    """saved(backbone entry, *tuner entries, head=…): a model folder of random numbers."""

    def make(backbone, *tuners, head='Linear', classes=CLASSES, evaluation=None):
        torch.manual_seed(0)
        head = dict(type=head)
        model = build_classifier(BACKBONES.build(backbone), list(tuners), head, classes).eval()
        with torch.no_grad():
            for parameter in model.trainable().values():
                parameter.add_(0.2 * torch.randn_like(parameter))
        settings = dict(
            model=dict(tuners=list(tuners), head=head, tasks={}, shared='.*'),
            dataset={},
            train={},
            evaluation=evaluation or {},
            seed=0,
        )
        save_model(model, tmp_path / 'model', dict(settings=settings, metrics={}))
        return tmp_path / 'model'

    return make


@pytest.fixture
def exported(saved, tmp_path):
    """exported(to, backbone, *tuners, …): (what was written, 5 images, the logits of the folder's model).
    Class names and preprocessing are in every format."""

    def make(to, *parts, **options):
        folder = saved(*parts, **options)
        done = export(folder, tmp_path / 'out' / f'made{SUFFIXES[to]}', to)
        x = images(5)
        assert done.difference < 1e-5 and done.format == to
        assert [path.name for path in done.path.parent.iterdir()] == [done.path.name]
        about, configuration = (
            json.loads(metadata(done.path, to)),
            json.loads((folder / 'configuration.json').read_text()),
        )
        assert (
            about['classes'] == CLASSES and about['vet_version'] == vet.__version__ and about['format'] == to
        )
        assert about['preprocessing'] == configuration['preprocessing'] and about['preprocessing'][
            'size'
        ] == [32, 32]
        assert (
            about['backbone']['sha256'] == configuration['model']['backbone']['sha256']
            and 'checkpoint' not in about['backbone']
        )
        with torch.no_grad():
            return done, x, load_model(folder)(x)

    return make


def close(ours, theirs):
    assert ours.shape == theirs.shape and theirs.abs().max() > 0.1
    assert (ours - theirs).abs().max() < 1e-5


def metadata(path, to):
    if to == 'onnx':
        return onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map['vet']
    if to == 'torch-export':
        files = {'vet.json': ''}
        torch.export.load(path, extra_files=files)
        return files['vet.json']
    with safe_open(path / 'adapter_model.safetensors' if to == 'peft' else path, 'pt') as file:
        return file.metadata()['vet']


def refused(message, folder, path, to):
    with pytest.raises(UserError, match=message) as caught:
        export(folder, path, to)
    assert '\n' not in str(caught.value)
    assert not path.exists() and not list(path.parent.glob('.*'))


# Plain weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'backbone, tuners',
    [
        (TIMM_VIT, [LORA]),
        (RESNET, [dict(LORA, at='weight')]),
        (TIMM_VIT, [dict(type='NormTune'), LORA, dict(type='SSF')]),
        (TIMM_VIT, [dict(type='LinearProbe')]),
    ],
    ids=['vit', 'resnet', 'several', 'head alone'],
)
@torch.no_grad()
def test_timm_makes_it_from_its_name_and_the_file(exported, backbone, tuners):
    done, x, logits = exported('timm', backbone, *tuners)
    network = timm.create_model(
        backbone['name'], num_classes=3, checkpoint_path=done.path, **backbone['kwargs']
    ).eval()
    close(network(x), logits)
    assert done.bytes == done.path.stat().st_size


@torch.no_grad()
def test_torchvision_loads_it_strictly(exported):
    done, x, logits = exported('torchvision', SMALL, dict(LORA, at='weight'))
    network = models.get_model('shufflenet_v2_x0_5', num_classes=3).eval()
    network.load_state_dict(load_file(done.path), strict=True)
    close(network(x), logits)


@torch.no_grad()
def test_timm_makes_the_vit_that_ships_with_vet_from_what_the_file_says(saved, tmp_path):
    folder, path = saved(dict(type='DigitsViT'), LORA), tmp_path / 'digits.safetensors'
    export(folder, path, 'timm')
    said = json.loads(metadata(path, 'timm'))['backbone']
    network = timm.create_model(said['name'], num_classes=3, checkpoint_path=path, **said['kwargs']).eval()
    close(network(images(5, 8)), load_model(folder)(images(5, 8)))
    assert read_configuration(folder)['model']['backbone']['type'] == 'DigitsViT' and said['type'] == 'timm'
    export(folder, tmp_path / 'plain.safetensors')
    plain = BACKBONES.build(
        {key: said[key] for key in ('type', 'name', 'kwargs')}
        | dict(checkpoint=tmp_path / 'plain.safetensors')
    )
    close(plain.eval()(images(5, 8)), load_model(folder).backbone(images(5, 8)))


@pytest.mark.parametrize(
    'name, size', [('googlenet', 64), pytest.param('inception_v3', 96, marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_networks_with_training_time_classifiers_go_without_them(saved, tmp_path, name, size):
    folder, path = (
        saved(dict(SMALL, name=name, preprocessing=dict(size=size)), dict(type='BitFit')),
        tmp_path / 'made.safetensors',
    )
    export(folder, path, 'torchvision')
    kwargs = json.loads(metadata(path, 'torchvision'))['backbone']['kwargs']
    network = models.get_model(name, num_classes=3, **kwargs).eval()
    network.load_state_dict(load_file(path), strict=True)
    close(network(images(2, size)), load_model(folder)(images(2, size)))


@pytest.mark.parametrize('to, backbone', [('timm', TIMM_VIT), ('torchvision', SMALL)])
@torch.no_grad()
def test_a_classifier_that_was_kept_is_exported_as_it_is(exported, to, backbone):
    kept = dict(backbone, classifier=True, kwargs=dict(backbone.get('kwargs', {}), num_classes=3))
    done, x, logits = exported(to, kept, dict(LORA, at='weight'), dict(type='BitFit'), head='Pretrained')
    network = (timm.create_model if to == 'timm' else models.get_model)(kept['name'], **kept['kwargs']).eval()
    network.load_state_dict(load_file(done.path))
    close(network(x), logits)


def test_a_backbone_is_one_to_train_from(exported):
    done, x, _ = exported('backbone', RESNET, dict(LORA, at='weight'))
    plain = BACKBONES.build(dict(RESNET, checkpoint=done.path)).eval()
    with torch.no_grad():
        close(plain(x), load_model(done.path.parents[1] / 'model').backbone(x))


@pytest.mark.parametrize(
    'to, backbone, tuner, head, message',
    [
        ('timm', TIMM_VIT, VPT, 'Linear', 'VPT cannot be merged.*onnx or torch-export'),
        ('backbone', TIMM_VIT, dict(type='Adapter', width=2), 'Linear', 'Adapter cannot be merged'),
        ('torchvision', SMALL, dict(type='SideTuning'), 'Linear', 'SideTuning cannot be merged'),
        ('timm', TIMM_VIT, LORA, 'MLP', "the head 'MLP' cannot be the classifier of timm"),
        (
            'timm',
            dict(TIMM_VIT, name='deit_tiny_distilled_patch16_224'),
            LORA,
            'Linear',
            r'head \(Linear\), head_dist \(Linear\), not one Linear',
        ),
        (
            'timm',
            SMALL,
            dict(LORA, at='weight'),
            'Linear',
            "the backbone is 'torchvision', which timm does not make",
        ),
        (
            'torchvision',
            RESNET,
            dict(LORA, at='weight'),
            'Linear',
            "the backbone is 'timm', which torchvision does not make",
        ),
        (
            'torchvision',
            dict(SMALL, name='squeezenet1_1'),
            dict(type='Full'),
            'Linear',
            r'squeezenet1_1 is classifier.1 \(Conv2d\), not one Linear',
        ),
        (
            'torchvision',
            dict(SMALL, name='resnet18', pool='max'),
            dict(type='BitFit'),
            'Linear',
            "pool is 'max', which torchvision's resnet18 does not have",
        ),
        ('peft', TIMM_VIT, dict(type='SSF'), 'Linear', 'SSF cannot be written for PEFT'),
    ],
)
def test_what_a_format_cannot_hold_is_refused_by_name(saved, tmp_path, to, backbone, tuner, head, message):
    refused(message, saved(backbone, tuner, head=head), tmp_path / f'made{SUFFIXES[to]}', to)


@torch.no_grad()
def test_a_folder_of_modelscope_becomes_timms(tmp_path):
    file = modelscope.content(lora_length=2)
    folder = modelscope.write(tmp_path / 'model', file)
    export(folder, tmp_path / 'made.safetensors', 'timm')
    kwargs = json.loads(metadata(tmp_path / 'made.safetensors', 'timm'))['backbone']['kwargs']
    network = timm.create_model(
        'vit_base_patch16_224',
        num_classes=len(file['CLASSES']),
        checkpoint_path=tmp_path / 'made.safetensors',
        **kwargs,
    )
    close(network.eval()(images(3)), modelscope.logits(file, images(3)))
    with pytest.raises(UserError, match='holds its own weights'):
        export(folder, tmp_path / 'other.safetensors', 'timm', backbone='w.safetensors')


# Graphs ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'backbone, tuners, head',
    [
        pytest.param(RESNET, [dict(LORA, at='weight')], 'MLP', marks=pytest.mark.slow, id='resnet'),
        pytest.param(
            TIMM_VIT,
            [dict(type='Prefix', length=2), dict(type='Adapter', width=2), LORA, VPT],
            'Linear',
            marks=pytest.mark.slow,
            id='several',
        ),
    ],
)
def test_onnxruntime_runs_it_for_any_number_of_images(exported, backbone, tuners, head):
    done, x, logits = exported('onnx', backbone, *tuners, head=head)
    session = onnxruntime.InferenceSession(done.path, providers=['CPUExecutionProvider'])
    for count in (1, 2, 5):
        [given] = session.run(['logits'], {'images': x[:count].numpy()})
        close(torch.from_numpy(given), logits[:count])
    assert session.get_inputs()[0].shape == ['batch', 3, 32, 32]
    assert session.get_outputs()[0].shape == ['batch', 3]
    assert not paths_in(done.path.read_bytes())


@pytest.mark.slow
@torch.no_grad()
def test_torch_runs_its_graph_for_any_number_of_images(exported):
    done, x, logits = exported('torch-export', TIMM_VIT, VPT, head='MLP')
    network = torch.export.load(done.path).module()
    for count in (1, 2, 5):
        close(network(x[:count]), logits[:count])
    assert not paths_in(done.path.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize(
    'evaluation',
    [
        {},
        dict(
            transform=[
                dict(type='Resize', size=[40, 50], interpolation='bilinear'),
                dict(type='CenterCrop', size=32),
                dict(type='ToTensor'),
                dict(type='Normalize', mean=[0.5], std=[0.25]),
            ],
            tta=dict(flip=True),
        ),
    ],
    ids=['the usual crop', 'own transform, two views'],
)
def test_a_graph_with_preprocessing_takes_pixels_of_any_size_and_gives_the_scores_of_pipeline(
    saved, tmp_path, evaluation
):
    folder = saved(TIMM_VIT, LORA, VPT, evaluation=evaluation)
    done = export(folder, tmp_path / 'made.onnx', 'onnx', with_preprocessing=True)
    session = onnxruntime.InferenceSession(done.path, providers=['CPUExecutionProvider'])
    assert session.get_inputs()[0].type == 'tensor(uint8)'
    assert session.get_inputs()[0].shape == ['batch', 'height', 'width', 3]
    assert session.get_outputs()[0].shape == ['batch', 3]
    classify = pipeline(model=folder, device='cpu')
    photograph = Image.fromarray(load_sample_images().images[1])
    answers = []
    for size in ((640, 427), (500, 375), (224, 300), (41, 23), (32, 32), (700, 90)):
        pixels = np.array(photograph.resize(size))
        [scores] = session.run(['scores'], {'images': np.stack([pixels, pixels[:, ::-1]])})
        for row, image in zip(scores, (pixels, np.ascontiguousarray(pixels[:, ::-1]))):
            answer = classify(image, topk=3)
            answers.append(answer['scores'])
            expected = dict(zip(answer['labels'], answer['scores']))
            assert np.allclose(row, [expected[name] for name in CLASSES], atol=1e-5)
    assert np.ptp(answers, axis=0).max() > 1e-3  # the images are told apart
    assert not paths_in(done.path.read_bytes())


@pytest.mark.parametrize(
    'to, evaluation, message',
    [
        ('timm', {}, 'timm holds weights and no preprocessing; --with-preprocessing is for'),
        (
            'onnx',
            dict(transform=[dict(type='Resize', size=40), dict(type='Grayscale', num_output_channels=3)]),
            r'evaluation.transform is Resize, Grayscale, .*a graph can hold a Resize.*Leave --with',
        ),
        (
            'onnx',
            dict(transform=[dict(type='Resize', size=40)]),
            'Resize of the short side to 40 and no Cent',
        ),
        (
            'torch-export',
            dict(transform=[dict(type='Resize', size=[32, 32], interpolation='nearest')]),
            "interpolation is 'nearest'; a graph can hold box, bilinear",
        ),
    ],
)
def test_preprocessing_that_a_graph_cannot_hold_is_refused(saved, tmp_path, to, evaluation, message):
    folder, path = saved(TIMM_VIT, LORA, evaluation=evaluation), tmp_path / f'made{SUFFIXES[to]}'
    with pytest.raises(UserError, match=message):
        export(folder, path, to, with_preprocessing=True)
    assert not path.exists()


def paths_in(data):
    """The folders of this machine that a file names."""
    return [folder for folder in (*vet.__path__, *torch.__path__, *timm.__path__) if folder.encode() in data]


def test_a_graph_that_cannot_be_drawn_is_refused(saved, tmp_path, monkeypatch):
    folder = saved(TIMM_VIT, VPT)
    monkeypatch.setattr(
        'vet.core.deltas.DropLast.forward', lambda self, x, y: y[:, : -self.count] * (1 if y.sum() > 0 else 2)
    )
    refused(
        r'torch.export cannot draw the graph of vit_tiny_patch16_224 .* with VPT',
        folder,
        tmp_path / 'made.onnx',
        'onnx',
    )


# Adapters ----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_peft_loads_it(exported):
    done, x, logits = exported('peft', TIMM_VIT, LORA)
    base = timm.create_model(TIMM_VIT['name'], num_classes=3, **VIT).eval()
    base.load_state_dict(BACKBONES.build(TIMM_VIT).network.state_dict(), strict=False)
    close(peft.PeftModel.from_pretrained(base, done.path).eval()(x), logits)
    assert done.bytes == sum(path.stat().st_size for path in done.path.iterdir())


# What holds for every format -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('to', ['timm', 'peft'])
def test_what_does_not_compute_the_same_is_not_written(saved, tmp_path, monkeypatch, to):
    folder = saved(TIMM_VIT, LORA)
    read, path = type(FORMATS[to]).read, tmp_path / f'made{SUFFIXES[to]}'

    def wrong(self, written, model):
        network = read(self, written, model)
        return lambda x: network(x) + (1e-3 if len(x) == 3 else 0)

    monkeypatch.setattr(type(FORMATS[to]), 'read', wrong)
    refused(
        f'the file exported to {to} does not compute like the model.*differ by 1.0e-03; allowed: .*Nothing was written',
        folder,
        path,
        to,
    )
    monkeypatch.setattr(type(FORMATS[to]), 'read', lambda *_: lambda x: torch.full((len(x), 3), torch.nan))
    refused('differ by nan', folder, path, to)
    monkeypatch.setattr(type(FORMATS[to]), 'read', lambda *_: 1 / 0)
    refused(f'the file exported to {to} cannot be read back: ZeroDivisionError', folder, path, to)


def test_it_is_compared_on_photographs_one_and_three_at_a_time(saved, tmp_path, monkeypatch):
    folder, seen, read = saved(RESNET, dict(LORA, at='weight')), [], type(FORMATS['timm']).read

    def watched(self, written, model):
        network = read(self, written, model)
        return lambda x: seen.append(x) or network(x)

    monkeypatch.setattr(type(FORMATS['timm']), 'read', watched)
    export(folder, tmp_path / 'made.safetensors', 'timm')
    assert [len(x) for x in seen] == [1, 3] and torch.equal(seen[0], seen[1][:1])
    view = pipeline(model=folder, device='cpu')._view[None]
    for x, photograph in zip(seen[1], load_sample_images().images):
        assert torch.equal(x, view(Image.fromarray(photograph)))
    assert not torch.equal(seen[1][0], seen[1][2])


@pytest.mark.parametrize('to', ['timm', 'peft', 'torch-export', pytest.param('onnx', marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_disk_has_every_file_before_it_gets_its_name(saved, tmp_path, monkeypatch, to):
    folder, events, path = saved(TIMM_VIT, LORA), [], tmp_path / f'made{SUFFIXES[to]}'
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda handle: events.append(os.fstat(handle).st_ino) or fsync(handle))
    monkeypatch.setattr(
        os, 'replace', lambda old, new: replace(old, new) or (new == path and events.append('named'))
    )
    export(folder, path, to)
    named, files = events.index('named'), [path, *path.rglob('*')]
    assert {file.stat().st_ino for file in files} <= set(events[:named]) and tmp_path.stat().st_ino in events[
        named:
    ]


@pytest.mark.parametrize('to', ['timm', pytest.param('onnx', marks=pytest.mark.slow)])
def test_files_of_two_exports_do_not_mix(saved, tmp_path, monkeypatch, to):
    """While an export puts its files in place, another export into the folder waits."""
    folder, path, seen = saved(TIMM_VIT, LORA), tmp_path / 'made' / f'a{SUFFIXES[to]}', []
    replace = os.replace

    def look(old, new):
        if new == path:
            seen.append(FileLock(path.parent).acquire(wait=False))
        replace(old, new)

    monkeypatch.setattr(os, 'replace', look)
    export(folder, path, to)
    assert seen and not any(seen) and FileLock(path.parent).acquire(wait=False)


def test_names_that_do_not_fit_are_refused_and_files_replaced(saved, tmp_path):
    folder = saved(TIMM_VIT, LORA)
    with pytest.raises(UserError, match="unknown export format 'tim'. Did you mean 'timm'"):
        export(folder, tmp_path / 'made', 'tim')
    refused("give a name that ends in '.onnx'", folder, tmp_path / 'made.safetensors', 'onnx')
    (tmp_path / 'there.safetensors').mkdir()
    for name, to in (('there.safetensors', 'timm'), ('model', 'peft')):
        with pytest.raises(UserError, match='exists already'):
            export(folder, tmp_path / name, to)
    (tmp_path / 'old.safetensors').write_text('old')
    export(folder, tmp_path / 'old.safetensors')
    assert load_file(tmp_path / 'old.safetensors')


def test_a_place_that_cannot_be_written_is_named(saved, tmp_path):
    folder = saved(TIMM_VIT, LORA)
    (tmp_path / 'file').write_text('')
    with pytest.raises(
        TrainingError, match=r'cannot write .*m\.safetensors.*: Not a directory. Choose another folder'
    ):
        export(folder, tmp_path / 'file' / 'deep' / 'm.safetensors', 'timm')


def test_a_library_that_is_not_installed_is_named(saved, tmp_path, monkeypatch):
    folder = saved(TIMM_VIT, LORA)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    refused(
        r'exporting to onnx needs onnxscript and onnxruntime: pip install "vision-efficient-tuning\[export\]"',
        folder,
        tmp_path / 'made.onnx',
        'onnx',
    )


# The folder travels --------------------------------------------------------------------------------------------------------


@pytest.fixture
def travelled(saved, tmp_path, monkeypatch):
    """(folder elsewhere, its weights elsewhere, scores before): nothing is left where it was, nor is
    this process there.
    """
    torch.manual_seed(1)
    weights = tmp_path / 'weights.safetensors'
    save_file(timm.create_model(TIMM_VIT['name'], num_classes=0, **VIT).state_dict(), weights)
    folder = saved(dict(TIMM_VIT, checkpoint=str(weights)), LORA, VPT)
    before = pipeline(model=folder, device='cpu')(load_sample_images().images)
    away = tmp_path / 'away'
    shutil.copytree(folder, away / 'copy')
    shutil.move(weights, away / 'w.safetensors')
    shutil.rmtree(folder)
    monkeypatch.chdir(away)
    return 'copy', 'w.safetensors', before


@pytest.mark.slow
def test_a_folder_elsewhere_gives_the_same_scores_with_the_weights_elsewhere(travelled):
    folder, weights, before = travelled
    photographs = load_sample_images().images
    assert pipeline('vision-efficient-tuning', folder, device='cpu', backbone=weights)(photographs) == before
    with pytest.raises(DataError, match='weights.safetensors. does not exist'):
        pipeline(model=folder, device='cpu')
    done = export(folder, 'made.onnx', 'onnx', backbone=weights)
    session = onnxruntime.InferenceSession('made.onnx')
    view = pipeline(model=folder, device='cpu', backbone=weights)._view[None]
    views = torch.stack([view(Image.fromarray(photograph)) for photograph in photographs])
    [logits] = session.run(None, {'images': views.numpy()})
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = json.loads(metadata(done.path, 'onnx'))['classes']
    assert [names[i] for i in scores.argmax(1)] == [result['labels'][0] for result in before]
    assert np.allclose(scores.max(1), [result['scores'][0] for result in before], atol=1e-6)


def test_other_weights_are_refused_wherever_they_are(travelled):
    folder, weights, _ = travelled
    state = load_file(weights)
    save_file(state | {'norm.bias': state['norm.bias'] + 1e-6}, 'other.safetensors')
    for call in (
        lambda: pipeline(model=folder, device='cpu', backbone='other.safetensors'),
        lambda: export(folder, 'made.onnx', 'onnx', backbone='other.safetensors'),
    ):
        with pytest.raises(DataError, match='these are not the backbone weights that were tuned'):
            call()
