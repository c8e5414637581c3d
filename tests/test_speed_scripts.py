"""The scripts of benchmarks/speed for machines that are not at hand run in miniature."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_in_miniature(tmp_path):
    path = tmp_path / 'host.json'
    command = [sys.executable, 'benchmarks/speed/gpu.py', '--mini', '--output', str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())['gpu']
    assert len(found['steps']) == 2 and all(one['seconds']['vet'] for one in found['steps'].values())
    assert list(found['images']) == ['pil', 'tensor', 'device'] and list(found['tuners']) == ['1', '2']


@pytest.mark.slow
def test_a_cpu_is_no_gpu():
    command = [sys.executable, 'benchmarks/speed/gpu.py']
    without = dict(os.environ, CUDA_VISIBLE_DEVICES='')
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=without)
    assert done.returncode == 2 and 'there is no CUDA device' in done.stderr
