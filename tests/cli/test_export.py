"""`export` as a user types it: each format, what it refuses in one line, and one of several tasks."""

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from safetensors import safe_open

from tests.nets import VIT, images
from vet import pipeline
from vet.core.assemble import build_classifiers
from vet.hub.formats import FORMATS
from vet.hub.model_folder import load_model, save_model
from vet.registry import BACKBONES

ROOT = Path(__file__).parents[2]
BACKBONE = dict(type='timm', name='vit_tiny_patch16_224', pretrained=False, kwargs=VIT)
LORA, VPT = dict(type='LoRA', rank=2), dict(type='VPT', length=2)
TASKS = dict(animals=['cat', 'dog'], plants=['oak', 'elm', 'fir'])


@pytest.fixture
def save(tmp_path):
    """save(tuner entries, task=classes): a model folder of random numbers; of one task, where its name
    is None.
    """

    def make(tuners, tasks):
        torch.manual_seed(0)
        head = dict(type='Linear')
        model = build_classifiers(
            {task: (BACKBONES.build(BACKBONE), head, classes) for task, classes in tasks.items()}, tuners
        )
        with torch.no_grad():
            for parameter in model.trainable().values():
                parameter.add_(0.2 * torch.randn_like(parameter))
        settings = dict(
            model=dict(tuners=tuners, head=head, tasks={}, shared='.*'),
            dataset={},
            train={},
            evaluation={},
            seed=0,
        )
        save_model(model, tmp_path / 'model', dict(settings=settings, metrics={}))
        return tmp_path / 'model'

    return make


@pytest.fixture
def folder(save):
    return save([LORA], {None: ['cat', 'dog']})


@pytest.mark.parametrize(
    'to',
    [
        'backbone',
        'timm',
        'peft',
        *(pytest.param(to, marks=pytest.mark.slow) for to in ('torch-export', 'onnx')),
    ],
)
def test_what_is_written_is_told_in_one_line(command, folder, to):
    code, out, err = command('export', folder, f'made{FORMATS[to].suffix}', '--to', to)
    assert code == 0, err
    [line] = out.splitlines()
    made = Path(f'made{FORMATS[to].suffix}')
    size = sum(file.stat().st_size for file in [made, *made.rglob('*')] if file.is_file())
    assert (
        line.startswith(f'{to}: {made}, {size:,} bytes, max difference ')
        and float(line.rpartition(' ')[2]) < 1e-5
    )


@pytest.mark.parametrize(
    'tuner, output, to, parts',
    [
        (
            VPT,
            'made.safetensors',
            'backbone',
            ['VPT cannot be merged into plain weights', 'onnx or torch-export'],
        ),
        (VPT, 'made.safetensors', 'timm', ['VPT cannot be merged into plain weights']),
        (
            LORA,
            'made.safetensors',
            'torchvision',
            ["the backbone is 'timm', which torchvision does not make", "allowed: 'torchvision'"],
        ),
        (VPT, 'made', 'peft', ['VPT', 'PEFT']),
        (LORA, 'made.pt', 'onnx', ["file of onnx: give a name that ends in '.onnx'"]),
        (LORA, 'made.onnx', 'torch-export', ["torch-export: give a name that ends in '.pt2'"]),
    ],
    ids=str,
)
def test_refusals(fails, save, tuner, output, to, parts):
    fails(*parts, of=['export', save([tuner], {None: ['cat', 'dog']}), output, '--to', to])
    assert not list(Path.cwd().glob('*made*'))


def test_a_format_that_does_not_exist_and_a_folder_that_is_none(command, fails, folder):
    code, _, err = command('export', folder, 'made', '--to', 'tensorflow')
    assert code == 2 and "invalid choice: 'tensorflow'" in err and all(name in err for name in FORMATS)
    fails('Give the output/ folder of a training run', of=['export', folder / 'none', 'made.safetensors'])


@torch.no_grad()
def test_one_of_several_tasks(command, fails, save):
    folder = save([LORA], TASKS)
    fails('animals', 'plants', of=['export', folder, 'made.safetensors', '--to', 'timm'])
    fails("'plant'", "'plants'", of=['export', folder, 'made.safetensors', '--to', 'timm', '--task', 'plant'])
    assert command('export', folder, 'made.safetensors', '--to', 'timm', '--task', 'plants')[0] == 0
    with safe_open('made.safetensors', 'pt') as file:
        assert json.loads(file.metadata()['vet'])['classes'] == TASKS['plants']
    model = load_model(folder).for_task('plants')
    network = timm.create_model(
        BACKBONE['name'], num_classes=3, checkpoint_path='made.safetensors', **VIT
    ).eval()
    assert torch.allclose(network(images(3)), model(images(3)), atol=1e-5)


@pytest.mark.slow
def test_int8_says_the_accuracy_on_the_test_split_or_the_agreement_on_images(
    command, fails, trainer, tmp_path
):
    folder = trainer.folder.path
    fails(
        'int8 is for onnx without preprocessing; given: timm',
        of=['export', folder, 'a.safetensors', '--to', 'timm', '--int8'],
    )
    fails(
        '--images is given without --int8',
        of=['export', folder, 'a.onnx', '--to', 'onnx', '--images', tmp_path],
    )
    assert command('export', folder, 'float.onnx', '--to', 'onnx')[0] == 0
    code, out, err = command('export', folder, 'int8.onnx', '--to', 'onnx', '--int8')
    assert code == 0, err
    said = re.search(r'same answer as before for (.*)% of 297 images, accuracy (.*) before, (.*) now', out)
    test = trainer.data['test']
    view = pipeline(model=folder, device='cpu').view()
    images = torch.stack([view(image) for image, _ in test]).numpy()
    labels = np.array([label for _, label in test])
    found = [
        onnxruntime.InferenceSession(name).run(None, {'images': images})[0].argmax(1)
        for name in ('float.onnx', 'int8.onnx')
    ]
    for share, right in zip(said.groups()[1:], found):
        assert abs(float(share) - (right == labels).mean()) < 0.03  # batches have other scales of activations
    assert abs(float(said[1]) / 100 - (found[0] == found[1]).mean()) < 0.02
    assert Path('int8.onnx').stat().st_size < 0.6 * Path('float.onnx').stat().st_size
    about = onnxruntime.InferenceSession('int8.onnx').get_modelmeta().custom_metadata_map['vet']
    assert json.loads(about)['classes'] == ['5', '6', '7', '8', '9']
    (tmp_path / 'photos').mkdir()
    for number in range(3):
        test[number][0].save(tmp_path / f'photos/{number}.png')
    code, out, err = command('export', folder, 'int8.onnx', '--to', 'onnx', '--int8', '--images', 'photos')
    assert code == 0 and re.search('same answer as before for (66.7|100.0)% of 3 images\n', out), (out, err)


@torch.no_grad()
def test_weights_that_have_moved_and_others(command, fails, folder, tmp_path):
    state = BACKBONES.build(BACKBONE).network.state_dict()
    torch.save(state, tmp_path / 'moved.pth')
    torch.save(state | {'norm.bias': state['norm.bias'] + 1}, tmp_path / 'other.pth')
    assert command('export', folder, 'made.safetensors', '--backbone', 'moved.pth')[0] == 0
    fails(
        'these are not the backbone weights that were tuned',
        of=['export', folder, 'no.safetensors', '--backbone', 'other.pth'],
    )
    assert not Path('no.safetensors').exists()


@pytest.mark.slow
def test_the_tool_runs_the_command(python, folder, tmp_path):
    done = python(ROOT / 'tools/export.py', folder, 'made.safetensors', '--to', 'timm', cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith('timm: made.safetensors, '), done.stderr
