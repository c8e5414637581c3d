"""Schemathesis asks all routes of /openapi.json with made-up requests. No answer is a fault of the server."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.running import running

ST = Path(sys.executable).with_name('schemathesis')


@pytest.mark.slow
@pytest.mark.skipif(not (ST.exists() or shutil.which('schemathesis')), reason='schemathesis is not installed')
def test_no_request_makes_a_fault(folders, tmp_path):
    with running(folders['one'], folders['two'], folders['numbers'], folders['masks']) as client:
        done = subprocess.run(
            [ST if ST.exists() else 'schemathesis', 'run', f'{client.base_url}/openapi.json']
            + ['--checks', 'not_a_server_error', '--max-examples', '60', '--seed', '1'],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=550,
        )
        assert 'status="500"' not in client.get('/metrics').text
    assert done.returncode == 0, done.stdout[-3000:]
    assert ' passed' in done.stdout
