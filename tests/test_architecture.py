"""docs/architecture.md is a map of this tree: what the page names exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs/architecture.md').read_text()


def test_every_file_and_room_that_the_page_names_exists():
    named = set(re.findall(r'`((?:\w+/)*\w+\.py)\b', PAGE)) | set(
        re.findall(r'`((?:vet|benchmarks|tests|docs)/[\w/.]*)', PAGE)
    )
    assert len(named) > 15
    assert [
        name for name in sorted(named) if not any((ROOT / room / name).exists() for room in ('', 'vet'))
    ] == []


def test_every_delta_capability_is_on_the_page():
    from vet.core.delta import Delta

    declared = {name for name in (*vars(Delta), *Delta.__annotations__) if not name.startswith('_')} - {
        'splits'
    }
    assert [name for name in sorted(declared) if f'`{name}`' not in PAGE] == []


@pytest.mark.parametrize('door', sorted((ROOT / 'vet').rglob('door.py')), ids=lambda path: path.parent.name)
def test_every_door_lists_the_files_behind_the_door(door):
    listed = set(re.findall(r'\w+\.py', ast.get_docstring(ast.parse(door.read_text()))))
    behind = {path.name for path in door.parent.glob('*.py')} - {'door.py', '__init__.py'}
    assert behind <= listed and len(behind) > 3
