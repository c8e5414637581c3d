"""docs/tuners.md names every tuner, and what it shows is there and builds."""

import re
from pathlib import Path

import pytest

from tests.contract.runs import widest
from tests.nets import tiny
from vet.cli.command import literal
from vet.errors import UserError
from vet.registry import TUNERS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'docs/tuners.md').read_text().partition('## Measured')[0]
SNIPPETS = re.findall(r'`(\[?dict\(type=[^`]*)`', TEXT)
OWN = [name for name in TUNERS.names() if TUNERS.find(name).__module__.startswith('vet.')]


@pytest.mark.parametrize('name', OWN)
def test_every_tuner_has_a_row(name):
    assert re.search(rf'^\| {name}(,| \|)', TEXT, re.MULTILINE)


def test_every_config_that_is_named_exists():
    named = re.findall(r'configs/\w+\.py', TEXT)
    assert len(named) > 10 and [name for name in named if not (ROOT / name).is_file()] == []


def test_every_snippet_builds():
    assert sum(text.count('dict(type=') for text in SNIPPETS) == TEXT.count('dict(type=')
    values = [literal(text) for text in SNIPPETS]
    entries = [entry for value in values for entry in (value if isinstance(value, list) else [value])]
    assert {type(TUNERS.build(entry)).__name__ for entry in entries} >= set(OWN)


@pytest.mark.parametrize('name', OWN)
def test_what_merges_is_said_to(name):
    rows = [line.split(' | ') for line in TEXT.splitlines() if re.match(rf'\| {name}(,| \|)', line)]
    case = widest()[name]
    for family in case.on or ('vit', 'resnet'):
        backbone = tiny(family)
        tuner = case.make(backbone)
        try:
            tuner.attach(backbone)
        except UserError:
            continue
        assert {row[4] for row in rows} == {'yes' if tuner.mergeable else 'no'}
        return
    pytest.fail('works on no family')
