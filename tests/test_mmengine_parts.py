"""The door to mmengine: yapf's cached grammars may be damaged, and no other file of vet imports mmengine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _import_registry(cache: Path) -> None:
    subprocess.run(
        [sys.executable, '-c', 'import vet.registry'],
        env={**os.environ, 'XDG_CACHE_HOME': str(cache), 'PYTHONPATH': str(ROOT)},
        check=True,
    )


@pytest.mark.skipif(sys.platform != 'linux', reason='XDG_CACHE_HOME names the cache on Linux alone')
@pytest.mark.parametrize('share', [0, 0.5])
def test_half_a_file_of_another_process_is_no_error_and_is_made_whole(tmp_path, share):
    _import_registry(tmp_path)
    whole = {path: path.read_bytes() for path in tmp_path.rglob('*.pickle')}
    assert whole
    for path, data in whole.items():
        path.write_bytes(data[: int(share * len(data))])
    _import_registry(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob('*.pickle')} == whole


def test_no_other_file_of_vet_imports_mmengine():
    imports = re.compile(r'^\s*(from|import) mmengine\b', re.MULTILINE)
    files = [
        path for path in (ROOT / 'vet').rglob('*.py') if imports.search(path.read_text(encoding='utf-8'))
    ]
    assert [path.name for path in files] == ['mmengine_parts.py']
