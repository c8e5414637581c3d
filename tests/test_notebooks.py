"""The notebooks: small files with pictures of a real run, which run again from the first cell to the last."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from website.notebooks import NAMES

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / 'notebooks').glob('*.ipynb'))


def test_every_notebook_is_a_page():
    assert sorted(NAMES) == [path.stem for path in FILES] and len(FILES) == 7


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_shows_a_whole_run(path):
    assert path.stat().st_size < 300_000
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any('image/png' in output.get('data', {}) for output in outputs)
    assert not any(output.output_type == 'error' for output in outputs)
    said = ''.join(output.get('text', '') for output in outputs)
    assert not re.search(r'(?<![\w.:/])/[\w.-]+/', said), 'a folder of the machine where the notebook ran'


@pytest.mark.slow
@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    """Each notebook checks its own results with `assert`."""
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('OMP_NUM_THREADS', os.environ.get('OMP_NUM_THREADS', '1'))
    notebook = nbformat.read(path, 4)
    options = dict(timeout=1200, kernel_name='python3', resources=dict(metadata=dict(path=str(tmp_path))))
    NotebookClient(notebook, **options).execute()
