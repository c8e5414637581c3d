"""Dockerfile and compose.yaml: their files exist, their command is one of vet, and their steps work in a fresh
virtual environment.
"""

import json
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.serve.folders import save

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / 'Dockerfile').read_text()
COMPOSE = yaml.safe_load((ROOT / 'compose.yaml').read_text())


def lines(instruction):
    """The arguments of each line of an instruction."""
    return re.findall(rf'^{instruction} (.*(?:\\\n.*)*)$', DOCKERFILE, re.M)


def command():
    [entry], [usual] = lines('ENTRYPOINT'), lines('CMD')
    return json.loads(entry), json.loads(usual)


def test_the_files_of_the_image_exist_and_are_let_in():
    allowed = (ROOT / '.dockerignore').read_text().split()
    for line in lines('COPY'):
        for source in shlex.split(line)[:-1]:
            assert (ROOT / source).exists() and f'!{source}' in allowed


def test_the_process_has_no_rights_and_the_port_is_of_this_machine():
    assert lines('USER') == ['vet'] and lines('HEALTHCHECK')
    service = COMPOSE['services']['vet']
    assert service['cap_drop'] == ['ALL'] and service['read_only'] is True
    assert all(port.startswith('127.0.0.1:') for port in service['ports'])
    assert all(volume.endswith(':ro') for volume in service['volumes'] if volume.startswith('./'))


def test_the_options_are_those_of_vet_serve(python):
    entry, usual = command()
    done = python('-m', 'vet', 'serve', '--help')
    for option in (*entry, *COMPOSE['services']['vet']['command']):
        assert not option.startswith('--') or option in done.stdout
    assert entry[:2] == ['vet', 'serve'] and usual == ['/models']


@pytest.mark.slow
def test_the_steps_in_a_fresh_environment(tmp_path):
    """pip install of the copied files, the entry point, and the check of health. torch comes from pip."""
    for line in lines('COPY'):
        *sources, place = shlex.split(line)
        for source in sources:
            target = tmp_path / 'src' / (source if place == './' else place)
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(['cp', '-r', ROOT / source, target], check=True)
    subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'venv'], check=True)
    bin = tmp_path / 'venv/bin'
    [install] = [step for step in lines('RUN') if '[serve]' in step]
    assert install.startswith('pip install --no-cache-dir ".[serve]"')
    subprocess.run([bin / 'pip', 'install', '--quiet', '.[serve]'], check=True, cwd=tmp_path / 'src')
    save(tmp_path / 'models/digits')
    entry, _ = command()
    process = subprocess.Popen(
        [bin / entry[0], *entry[1:-1], '0', tmp_path / 'models'],
        cwd=tmp_path,
        env=dict(PATH=str(bin), HOME=str(tmp_path)),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = process.stdout.readline().strip().rpartition(':')[2]
        [check] = re.findall(r'CMD (\[.*\])\nENTRYPOINT', DOCKERFILE)
        python, flag, code = json.loads(check)
        assert (python, flag) == ('python', '-c')
        subprocess.run([bin / 'python', '-c', code.replace(':8000/', f':{port}/')], check=True)
        with urllib.request.urlopen(f'http://127.0.0.1:{port}/v1/models/digits') as answer:
            assert json.load(answer)['objective'] == 'SingleLabel'
    finally:
        process.terminate()
        process.wait(60)
