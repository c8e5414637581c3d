"""docs/families.md: a family on which a tuner ran, and on which the tuner no longer runs, fails."""

import random
import re
from datetime import date

import pytest

from benchmarks.families import PAGE, Row, build, measure, page, read, sweep, worse

COMMITTED = read(PAGE.read_text())
SMALL = [row for row in COMMITTED if row.source == 'timm' and 0 < row.roles['block'] <= 8]


@pytest.mark.parametrize('number', range(3))  # no names: two processes may collect on two sides of midnight
def test_a_sample_of_families_that_changes_with_the_date(number):
    row = random.Random(date.today().toordinal()).sample(SMALL, 3)[number]
    assert not worse(
        row, measure(row.source, row.name, row.kwargs, build(row.source, row.name, **row.kwargs))
    )


@pytest.mark.slow
def test_no_family_lost_a_tuner_or_coverage():
    now = {(row.source, row.name): row for row in sweep()}
    missing = [row.name for row in COMMITTED if (row.source, row.name) not in now]
    lost = [fault for row in COMMITTED for fault in worse(row, now.get((row.source, row.name), row))]
    assert not missing and not lost


def test_lora_covers_the_attention_of_every_family_but_the_ones_that_pool():
    with_attention = [row for row in COMMITTED if row.projections]
    partly = {row.name for row in with_attention if row.covered < row.projections}
    assert len(with_attention) > 100 and len(partly) <= 12


TUNERS = ['Adapter', 'AdaptFormer', 'SSF', 'Partial', 'BitFit', 'NormTune', 'LoRA at weight', 'LinearProbe']


# no fault of a tuner: the network has no norm, no bias, or no pooled features
IMPOSSIBLE = re.compile(r'(no norm|has nothing to train|gives tokens or maps)\b')


@pytest.mark.parametrize('tuner', TUNERS)
def test_tuners_run_on_nearly_every_family(tuner):
    allowed = [row for row in COMMITTED if not IMPOSSIBLE.match(row.refused.get(tuner, ''))]
    assert sum(tuner in row.runs for row in allowed) >= 0.98 * len(allowed)


def test_vpt_runs_on_every_family_of_plain_tokens():
    """The others have maps, windows, or numbers for each pair of positions."""
    for why in {row.refused['VPT'] for row in COMMITTED if 'VPT' in row.refused}:
        assert not re.search('rope|Error', why)


def test_a_page_is_read_as_it_was_written():
    rows = [
        Row(
            'timm',
            'a',
            {'depth': 2},
            dict(block=2),
            0.5,
            4,
            3,
            'x.q',
            {'LoRA': 'no', 'VPT': 'this needs it, but'},
        ),
        Row('torchvision', 'b', roles=dict(block=0)),
    ]
    assert page(COMMITTED) == PAGE.read_text()
    again = read(page(rows))
    assert [(row.name, row.kwargs, row.runs, row.covered, row.projections) for row in again] == [
        (row.name, row.kwargs, row.runs, row.covered, row.projections) for row in rows
    ]
    assert not worse(again[0], rows[0])
    assert worse(rows[1], Row('torchvision', 'b', refused={'SSF': 'no'})) == ['b: SSF is refused']
