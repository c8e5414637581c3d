"""vet demo: the folder of a Space, and the app with the real Gradio."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import gradio_client
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

import vet
from tests.nets import VIT
from vet import pipeline
from vet.core.assemble import build_classifier
from vet.hub.demo import GRADIO
from vet.hub.model_folder import save_model
from vet.registry import BACKBONES

ROOT = Path(__file__).parents[2]


def header(readme):
    return yaml.safe_load(re.match(r'---\n(.*?)\n---\n', readme, re.DOTALL)[1])


def test_the_folder_is_a_space(command, trainer):
    code, out, err = command('demo', trainer.folder.path, '--out', 'app', '--title', 'Digits: 5 to 9')
    assert (code, err) == (0, '') and 'python app/app.py' in out
    names = {path.relative_to('app').as_posix() for path in Path('app').rglob('*') if path.is_file()}
    model = {f'model/{name}' for name in ('README.md', 'configuration.json', 'tuner.safetensors')}
    assert names == {'app.py', 'app.json', 'requirements.txt', 'README.md'} | model
    assert json.loads(Path('app/app.json').read_text())['shows'] == 'labels'
    front = header(Path('app/README.md').read_text())
    assert front['sdk'] == 'gradio' and front['app_file'] == 'app.py' and front['title'] == 'Digits: 5 to 9'
    assert front['sdk_version'] == GRADIO and 'models' not in front
    assert Path('app/requirements.txt').read_text().split() == [
        f'vision-efficient-tuning=={vet.__version__}',
        f'gradio=={GRADIO}',
    ]
    compile(Path('app/app.py').read_text(), 'app.py', 'exec')


@pytest.fixture
def tuned_on_a_file(tmp_path):
    """A model folder of a network whose weights are a file."""
    torch.manual_seed(0)
    weights = tmp_path / 'weights.safetensors'
    save_file(timm.create_model('vit_tiny_patch16_224', num_classes=0, **VIT).state_dict(), weights)
    backbone = dict(type='timm', name='vit_tiny_patch16_224', checkpoint=str(weights), kwargs=VIT)
    tuners, head = [dict(type='LoRA', rank=2)], dict(type='Linear')
    made = build_classifier(BACKBONES.build(backbone), tuners, head, ['cat', 'dog', 'elk'])
    model = dict(tuners=tuners, head=head, tasks={}, shared='.*')
    settings = dict(model=model, dataset={}, train={}, evaluation={}, seed=0)
    save_model(made, tmp_path / 'model', dict(settings=settings, metrics={}))
    return tmp_path / 'model', weights


def test_weights_of_a_file_come_along_and_nothing_names_this_machine(command, tuned_on_a_file):
    folder, weights = tuned_on_a_file
    assert command('demo', folder, '--out', 'app')[0] == 0
    assert Path('app/backbone.safetensors').read_bytes() == weights.read_bytes()
    readme = Path('app/README.md').read_text()
    assert 'are the file `backbone.safetensors` in this folder' in readme and 'sha256' in readme
    for path in Path('app').rglob('*.*'):
        assert str(weights.parent).encode() not in path.read_bytes()


def test_mistakes(fails, command, trainer, tmp_path):
    (tmp_path / 'there').mkdir()
    fails("'there' exists already", of=['demo', trainer.folder.path, '--out', 'there'])
    fails("'none' does not exist", of=['demo', 'none', '--out', 'app'])
    fails('task', of=['demo', trainer.folder.path, '--out', 'app', '--task', 'plants'])
    assert not Path('app').exists()


@pytest.mark.slow
def test_the_app_gives_the_answers_of_pipeline(command, tuned_on_a_file, tmp_path):
    folder, weights = tuned_on_a_file
    assert GRADIO.split('.')[0] == version('gradio').split('.')[0]
    image = tmp_path / 'photo.jpg'
    Image.fromarray(load_sample_images().images[0]).save(image)
    expected = pipeline(model=folder, device='cpu')(str(image), topk=3)
    assert command('demo', folder, '--out', 'app')[0] == 0
    weights.unlink()  # the app has its own copy
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    settings = dict(GRADIO_SERVER_PORT=str(port), GRADIO_ANALYTICS_ENABLED='False', PYTHONPATH=str(ROOT))
    app = subprocess.Popen([sys.executable, 'app.py'], cwd='app', env=os.environ | settings)
    try:
        client = answering(gradio_client.Client, f'http://127.0.0.1:{port}', app)
        found = client.predict(gradio_client.handle_file(str(image)), api_name='/answer')
    finally:
        app.terminate()
        app.wait(30)
    assert found['label'] == expected['labels'][0]
    scores = {each['label']: each['confidence'] for each in found['confidences']}
    assert scores == dict(zip(expected['labels'], expected['scores']))


def answering(client, address, app):
    """A client of the app, as soon as the app answers."""
    end = time.monotonic() + 240
    while True:
        assert app.poll() is None, 'the app has ended'
        try:
            return client(address, verbose=False)
        except Exception:  # the app does not listen yet
            assert time.monotonic() < end, 'the app does not answer'
            time.sleep(0.5)
