"""The tests notice faults: of a seeded sample of small ones, at least 95 in a hundred. What changes no
behaviour is listed with a reason.
"""

import json
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT
from tests.mutants.covering import READERS, Covering, digest
from tests.mutants.mutations import mutations
from tests.mutants.run import EQUIVALENT, ROOMS, files_with_tests, key, sample

SOURCE = b'''
import torch

def area(size, scale=2.0, *, round_up=True):
    """Not a mutation."""
    if size is None or size < 0:
        raise ValueError(f'{size} is below {0}')
    with torch.no_grad():
        total = min(size * size, 10) if round_up else 0
    return torch.zeros(total, dtype=torch.int32).detach()
'''


def test_what_can_go_wrong_in_a_function():
    found = {(mutation.old, mutation.new) for mutation in mutations(SOURCE, 'vet/core/area.py')}
    for old, new in (('scale=2.0', 'scale=(4.0)'), ('round_up=True', 'round_up=(False)')):
        assert (
            'def area(size, scale=2.0, *, round_up=True):',
            'def area(size, scale=2.0, *, round_up=True):'.replace(old, new),
        ) in found
    condition, total = 'if size is None or size < 0:', 'total = min(size * size, 10) if round_up else 0'
    result = 'return torch.zeros(total, dtype=torch.int32).detach()'
    for old, new in (
        (condition, 'if not (size is None or size < 0):'),
        (condition, 'if (size is None and size < 0):'),
        (condition, 'if (size < 0):'),
        (condition, 'if (size is not None) or size < 0:'),
        (condition, 'if size is None or (size <= 0):'),
        (condition, 'if size is None or size < (1):'),
        ("raise ValueError(f'{size} is below {0}')", 'pass'),
        ('with torch.no_grad():', 'if True:'),
        (total, 'total = (max(size * size, 10)) if round_up else 0'),
        (total, 'total = min((size / size), 10) if round_up else 0'),
        (total, 'total = (min(size * size, 10) if not round_up else 0)'),
        (result, 'return (torch.zeros(total, dtype=torch.int32))'),
        (result, 'return (torch.zeros(total)).detach()'),
        (result, 'return (torch.ones(total, dtype=torch.int32)).detach()'),
        (result, 'return None'),
    ):
        assert (old, new) in found
    assert all(
        mutation.is_valid and mutation.scope == 'area' for mutation in mutations(SOURCE, 'vet/core/area.py')
    )
    assert not any('Not a' in old or 'below' in old and new != 'pass' for old, new in found)


MODULE = b"""LIMIT = 3
class Area:
    size = 2
    @staticmethod
    def of(
        rank=8,
    ):
        def scaled(by=2.0):
            return rank * by
        return scaled()
    def other(self):
        return 1
"""
IMPORTS, RUNS, OTHER = (f'tests/tuners/{name}.py::test' for name in ('test_first', 'test_runs', 'test_other'))
ALIKE, READS = 'tests/core/test_area.py::test', 'tests/tuners/test_defaults.py::test_defaults[Area]'


@pytest.mark.parametrize(
    ('line', 'tests'),
    [
        pytest.param(1, [ALIKE, READS, IMPORTS, OTHER, RUNS], id='module'),
        pytest.param(3, [ALIKE, READS, IMPORTS, OTHER, RUNS], id='body of a class'),
        pytest.param(4, [ALIKE, READS, RUNS], id='decorator'),
        pytest.param(6, [ALIKE, READS, RUNS], id='default'),
        pytest.param(8, [RUNS], id='default within a function'),
        pytest.param(9, [RUNS], id='inner body'),
        pytest.param(12, [OTHER], id='body'),
    ],
)
def test_what_the_import_runs_has_the_tests_that_could_notice_a_change(line, tests):
    by_line = (
        dict.fromkeys((1, 2, 3, 4, 5, 11), [IMPORTS]) | dict.fromkeys((8, 9, 10), [RUNS]) | {12: [OTHER]}
    )
    covering = Covering(
        {IMPORTS: 1, OTHER: 2, RUNS: 3, READS: 4, ALIKE: 5},
        {
            'vet/tuners/area.py': dict(
                sha256=digest(MODULE), lines={str(number): by_line[number] for number in by_line}
            )
        },
    )
    assert covering.of('vet/tuners/area.py', line, MODULE) == tests


def test_a_sample_stays_the_same_when_other_code_changes():
    before = mutations(SOURCE, 'vet/core/area.py')
    after = mutations(SOURCE.replace(b'import torch', b'import torch\nLIMIT = 3'), 'vet/core/area.py')
    chosen = [key(vars(mutation)) for mutation in sample(before, ['core'], 5, seed=0)]
    assert len(chosen) == 5
    assert [
        one
        for one in (key(vars(mutation)) for mutation in sample(after, ['core'], 6, seed=0))
        if one[2] != 'LIMIT = 3'
    ][:5] == chosen
    assert chosen != [key(vars(mutation)) for mutation in sample(before, ['core'], 5, seed=1)]


@pytest.mark.parametrize('room', ROOMS)
def test_every_room_and_every_place_of_its_tests_exists(room):
    assert (ROOT / 'vet' / room).is_dir()
    for place in (*ROOMS[room], *READERS):
        assert files_with_tests(ROOT / place), place


def test_what_is_listed_as_equivalent_is_a_mutation_and_has_a_reason():
    for entry in yaml.safe_load(EQUIVALENT.read_text()):
        known = mutations((ROOT / entry['file']).read_bytes(), entry['file'])
        assert key(entry) in {key(vars(mutation)) for mutation in known}, entry
        assert len(entry['why'].split()) > 3, entry


@pytest.mark.slow
def test_at_least_95_in_a_hundred_faults_are_noticed(tmp_path):
    made = subprocess.run(
        [
            sys.executable,
            'tests/mutants/run.py',
            '--count',
            '60',
            '--seed',
            '0',
            '--out',
            tmp_path / 'mutants.json',
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert len(json.loads((tmp_path / 'mutants.json').read_text())['mutants']) == 60
