"""Files are written whole or not at all, and a damaged file is told apart from a whole one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from tests.conftest import CACHE
from vet.cache_folder import cache_path
from vet.core.tensor_file import check_tensors, read_tensors, sha256_of
from vet.errors import DataError, TrainingError, UserError
from vet.files import publish_folder, read_json, write_file
from vet.lock import FileLock

ROOT = Path(__file__).parents[1]
TENSORS = {'weight': torch.arange(12.0).view(3, 4), 'steps': torch.tensor(3)}


@pytest.mark.parametrize(
    'text, part',
    [
        (b'{"a": 1', 'holds no valid JSON'),
        (b'', 'holds no valid JSON'),
        (b'\xff\xfe{}', 'holds no valid JSON'),
        (b'[' * 100_000, 'holds no valid JSON'),
        (b'{"a": NaN', 'holds no valid JSON'),
    ],
    ids=range(5),
)
def test_json_that_is_damaged(tmp_path, text, part):
    path = tmp_path / 'file.json'
    path.write_bytes(text)
    with pytest.raises(DataError, match=part):
        read_json(path)


def test_a_pipe_is_no_file(tmp_path):
    """Reading the pipe would wait for ever."""
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(DataError, match='is no regular file'):
        read_json(tmp_path / 'pipe')
    with pytest.raises(DataError, match='does not exist'):
        read_json(tmp_path / 'nothing')


def test_every_flipped_bit_is_found(tmp_path):
    data, path = save(TENSORS), tmp_path / 'file.safetensors'
    path.write_bytes(data)
    assert read_tensors(path, '', sha256_of(data))['weight'].equal(TENSORS['weight'])
    draw = np.random.default_rng(0)
    for position in draw.integers(0, 8 * len(data), 200):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(DataError, match='damaged or changed, its sha256|header is said to take'):
            read_tensors(path, '', sha256_of(data))


def test_every_truncation_is_found(tmp_path):
    data, path = save(TENSORS), tmp_path / 'file.safetensors'
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match='cannot be read'):
            read_tensors(path, '')


@pytest.mark.parametrize(
    'change, part',
    [
        (
            {'weight': torch.zeros(4, 3)},
            r'weight is torch.float32 of shape \(4, 3\); torch.float32 of shape \(3, 4\) is needed',
        ),
        ({'weight': torch.zeros(3, 4, dtype=torch.int32)}, 'weight is torch.int32'),
        ({'weight': torch.zeros(3, 4, dtype=torch.bool)}, 'weight is torch.bool'),
        ({'weight': torch.zeros(3, 4, dtype=torch.complex64)}, 'weight is torch.complex64'),
        ({'weight': torch.full((3, 4), float('nan'))}, 'weight holds numbers that are not finite'),
        ({'weight': torch.full((3, 4), float('-inf'))}, 'not finite'),
        ({'steps': None}, "lacks 'steps'"),
        ({'more': torch.zeros(1)}, "has the unknown tensor 'more'"),
    ],
    ids=range(8),
)
def test_other_tensors_are_refused(change, part):
    given = {name: tensor for name, tensor in (TENSORS | change).items() if tensor is not None}
    with pytest.raises(DataError, match=part):
        check_tensors(given, TENSORS, 'the file')


def limited(tmp_path, code, limit=4096):
    """Runs Python code in a process that may write files of `limit` bytes at most: (exit code, stderr)."""
    script = f'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n{code}'
    answer = subprocess.run(
        [sys.executable, '-c', script],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=100,
    )
    return answer.returncode, answer.stderr


def test_a_limit_on_the_size_of_files_is_named(tmp_path):
    (tmp_path / 'file').write_text('old')
    code, err = limited(
        tmp_path,
        'from pathlib import Path\nfrom vet.files import write_file\nwrite_file(Path("file"), b"x" * 9999)',
    )
    assert code == 1 and 'TrainingError' in err and 'ulimit -f' in err, err
    assert (tmp_path / 'file').read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(
        TrainingError, match='its folder does not exist, or was moved or removed. Make the folder or put'
    ):
        write_file(tmp_path / 'gone' / 'file', b'')
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='Choose another folder'):
        publish_folder(tmp_path / 'file' / 'inner', lambda folder: None)


def hold(path, ready):
    """Of a child process: holds a lock, with a child of its own, until the process is killed."""
    assert FileLock(path).acquire(wait=False)
    if (inner := os.fork()) == 0:
        signal.pause()
    write_file(ready, str(inner))
    signal.pause()


def test_a_lock_is_held_by_one_and_goes_with_its_process(process, tmp_path):
    """Also where a forked child outlives the process."""
    lock, ready = FileLock(tmp_path / 'lock'), tmp_path / 'ready'
    child = process(hold, tmp_path / 'lock', ready)
    while not ready.exists():
        assert child.is_alive()
    assert not lock.acquire(wait=False)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    inner = int(ready.read_text())
    os.kill(inner, 0)  # is still there
    assert lock.acquire(wait=False) and lock.is_in_place() and lock.is_real
    assert not FileLock(tmp_path / 'lock').acquire(wait=False)  # of the same process
    os.replace(tmp_path / 'lock', tmp_path / 'other')
    assert not lock.is_in_place()
    lock.release()
    assert FileLock(tmp_path / 'other').acquire(wait=False)
    os.kill(inner, signal.SIGKILL)


def test_json_reads_what_was_written(tmp_path):
    write_file(tmp_path / 'file', json.dumps(dict(a=[1, 'ä'])))
    assert read_json(tmp_path / 'file') == dict(a=[1, 'ä'])


def test_the_tests_write_no_cache_into_the_home_of_the_user():
    assert cache_path('x').parent != Path('~/.cache/vet').expanduser()
    assert CACHE in cache_path('x').parent.name
