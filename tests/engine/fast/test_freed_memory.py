"""Freed memory stays with a process that trains, and leaves it afterwards. Counted in page faults, of a
process of its own.
"""

import json
import os
import platform
import subprocess
import sys

import pytest

from tests.engine.runs import small
from vet.engine.fast import freed_memory

MEASURED = """
import json, resource, torch
from vet.engine.fast.freed_memory import freed_memory_kept

def round_of_work():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(20_000_000) for _ in range(2)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    return int(open('/proc/self/statm').read().split()[1])

def rounds():
    return [round_of_work() for _ in range(10)]

before, outside = held(), rounds()
with freed_memory_kept(torch.device('cpu')):
    inside, during = rounds(), held()
print(json.dumps(dict(outside=outside, inside=inside, before=before, during=during, after=held())))
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='no glibc')


def measured(**environment: str) -> dict:
    free = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith('MALLOC_') and name != 'GLIBC_TUNABLES'
    }
    done = subprocess.run(
        [sys.executable, '-c', MEASURED], env=free | environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@glibc
@pytest.mark.slow
def test_pages_are_no_longer_asked_for_within_and_are_given_back_after():
    found = measured()
    assert min(found['outside']) > 30_000  # 160 MB of pages of 4 KiB
    assert min(found['inside']) < 1_000  # glibc needs some rounds until aligned blocks fit into freed ones
    assert found['during'] - found['after'] > 30_000 and found['after'] - found['before'] < 10_000


@glibc
@pytest.mark.slow
@pytest.mark.parametrize(
    'rules', [dict(MALLOC_ARENA_MAX='2'), dict(GLIBC_TUNABLES='glibc.malloc.tcache_count=8')], ids=str
)
def test_rules_of_the_environment_stay(rules):
    found = measured(**rules)
    assert min(found['inside']) > 30_000


def test_training_is_within(tmp_path, monkeypatch):
    rules = []
    monkeypatch.setattr(freed_memory, '_set', lambda _, values: rules.append(values))
    for name in os.environ:
        if name.startswith('MALLOC_') or name == 'GLIBC_TUNABLES':
            monkeypatch.delenv(name)
    monkeypatch.setattr(freed_memory.platform, 'libc_ver', lambda: ('glibc', '2.36'))
    trainer = small(tmp_path / 'run', **{'train.max_epochs': 1})
    assert not rules
    trainer.train()
    assert rules == [freed_memory.KEEPING, freed_memory.USUAL]
    monkeypatch.setattr(freed_memory.platform, 'libc_ver', lambda: ('', ''))  # as on macOS
    small(tmp_path / 'other', **{'train.max_epochs': 1}).train()
    assert len(rules) == 2
