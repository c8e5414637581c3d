"""vet serve: the command in its own process, which SIGTERM drains, and refusals of wrong options."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from tests.serve.folders import encoded, photo, save

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_sigterm_drains_and_the_log_is_json(tmp_path):
    save(tmp_path / 'm')
    (tmp_path / 'token').write_text('geheim\n')
    process = subprocess.Popen(
        [sys.executable, '-m', 'vet', 'serve', tmp_path / 'm', '--port', '0', '--max-wait-ms', '2000']
        + ['--token-file', tmp_path / 'token'],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline().strip()
    assert line.startswith('1 model at http://127.0.0.1:')
    url, answers = line.split()[-1], []

    def ask():
        answers.append(
            httpx.post(
                f'{url}/v1/predict',
                files=dict(images=encoded(photo(0))),
                headers={'Authorization': 'Bearer geheim', 'X-Request-ID': 'the-last'},
                timeout=60,
            )
        )

    ask()
    waits = threading.Thread(target=ask)  # for two seconds, in which the batch gathers
    waits.start()
    while (
        'vet_images_waiting 1.0'
        not in httpx.get(f'{url}/metrics', headers={'Authorization': 'Bearer geheim'}).text
    ):
        pass
    process.send_signal(signal.SIGTERM)
    waits.join()
    _, log = process.communicate(timeout=60)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert process.returncode in (143, -signal.SIGTERM)
    lines = [json.loads(line) for line in log.splitlines()]
    last = [line for line in lines if line.get('request_id') == 'the-last'][-1]
    assert (last['status'], last['model'], last['images'], last['path']) == (200, 'm', 1, '/v1/predict')
    assert 'geheim' not in log


@pytest.mark.parametrize('token', ['two words', ' ', 'schlüssel', 'a\tb'])
def test_a_token_that_no_header_can_hold(fails, monkeypatch, token):
    monkeypatch.setenv('VET_SERVE_TOKEN', token)
    fails('the variable VET_SERVE_TOKEN must hold one word', of=['serve', 'nowhere'])


@pytest.mark.parametrize(
    'options, text',
    [
        (['--memory', 'much'], "--memory is 'much'; allowed: a whole number with K, M or G"),
        (['--max-batch', '0'], '--max-batch is 0; allowed: 1 or more'),
        (['--max-wait-ms', '-1'], '--max-wait-ms'),
        (['--timeout', '0'], '--timeout'),
        (['--replicas', '2'], '--replicas and --resources are for --launcher ray'),
        (['--launcher', 'ray', '--replicas', '0'], '--replicas is 0; allowed: 1 or more'),
        (['--token-file', 'nowhere'], "--token-file is 'nowhere', which cannot be read"),
        (['--token-file', 'words'], "the file 'words' of --token-file must hold one word"),
        ([], "the model folder 'nowhere' does not exist"),
    ],
)
def test_refusals(fails, options, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('words').write_text('two words')
    fails(text, of=['serve', 'nowhere', *options])
