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


def defined(path: Path) -> set[str]:
    """The names of the functions, classes, fields and variables of a file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def test_every_name_of_a_file_on_the_page_exists():
    """A place such as `core/model.py: ImageClassifier`, and a dotted name such as `builders.build_trainer`."""
    places = re.findall(r'`((?:\w+/)*\w+\.py): (\w+)`', PAGE)
    dotted = re.findall(r'`((?:\w+\.)+)(\w+)`', PAGE)
    rooms = {path.stem for path in (ROOT / 'vet').iterdir()}
    for module, name in dotted:
        if module.partition('.')[0] in rooms and name != 'py':
            places.append((f'{module[:-1].replace(".", "/")}.py', name))
    assert len(places) >= 6
    wrong = [f'{file}: {name}' for file, name in places if name not in defined(ROOT / 'vet' / file)]
    assert wrong == []


def test_every_call_on_the_page_exists():
    """A call such as `attach(backbone)` or `merge()`."""
    calls = set(re.findall(r'`(\w+)\([^`]*\)`', PAGE))
    names = set().union(*(defined(path) for path in (ROOT / 'vet').rglob('*.py')))
    assert len(calls) > 6 and calls - names == set()


@pytest.mark.slow
def test_each_walk_crosses_the_files_that_the_page_names(python):
    done = python(ROOT / 'benchmarks/walks.py')
    counted = re.findall(r'^(.*): (\d+) files\n  (.*)$', done.stdout, flags=re.M)
    walks = {
        title.lower(): text
        for title, text in re.findall(r'\*\*(.*?)\.\*\*(.*?)(?=\n\*\*|\n## )', PAGE, flags=re.S)
    }
    assert len(counted) == 3, done.stderr
    for title, number, files in counted:
        named = set(re.findall(r'`((?:\w+/)*\w+\.py)\b', walks[title]))
        assert len(named) >= 3 and named - {'door.py'} <= set(files.split()), title
        assert int(number) == len(files.split())
    assert re.search(r'^a Linear under LoRA: \d+ functions in \d+ files$', done.stdout, flags=re.M)


def test_every_room_of_the_import_table_exists():
    from tests.test_layering import ARROWS

    [table] = re.findall(r'```text\n(the ground floor:.*?)```', PAGE, flags=re.S)
    words = set(re.findall(r'[a-z_]+', re.sub(r'\([^)]*\)', '', table)))
    words -= {'the', 'ground', 'floor'}
    rooms = {path.stem for path in (ROOT / 'vet').iterdir()} | {'tools'}
    assert words <= rooms, words - rooms
    assert {'library', 'engine', 'own_backbone'} <= words and set(ARROWS) - words <= {
        '__main__',
        'benchmarks',
    }


def test_the_import_table_says_what_each_room_imports():
    from tests.test_layering import imports, modules, room

    [table] = re.findall(r'```text\n(the ground floor:.*?)```', PAGE, flags=re.S)
    floor, *lines = re.sub(r'\([^)]*\)', '', table).split('the ground floor  <-', 1)
    ground = set(re.findall(r'[a-z_]+', floor)) - {'the', 'ground', 'floor'}
    said = {}
    for line in f'<-{lines[0]}'.splitlines():
        below, above = line.split('<-')
        for name in re.findall(r'[a-z_]+', above):
            said[name] = set(re.findall(r'[a-z_]+', below))
    found = {name: set() for name in said}
    for module, path in modules().items():
        if room(module) in found:
            found[room(module)] |= {room(name) for name in imports(path.read_text(), module) - {'vet'}}
    assert {name: rooms - ground - {name} for name, rooms in found.items()} == said


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
