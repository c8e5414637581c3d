"""Ranks over datasets with their tests, and the words for differences to the baseline."""

import csv
import io
from dataclasses import replace

import pytest
from scipy.stats import friedmanchisquare

from tests.benchmark.made import result, suite
from vet.benchmark.ranks import differences, rank_notes, rank_rows, ranking
from vet.benchmark.report import report
from vet.benchmark.table_files import as_csv, markdown
from vet.benchmark.tables import make_tables

MADE = replace(suite(('lora', 'ssf', 'full'), ('dtd', 'pets')), baseline='lora')


def runs(tuner, dataset, accuracies, **changes):
    return [
        result(tuner, seed, accuracy, dataset, metrics=dict(accuracy=accuracy), **changes)
        for seed, accuracy in enumerate(accuracies)
    ]


def measured(**changes):
    """ssf is above lora in each dataset, beyond noise in dtd alone. full is far below."""
    return [
        *runs('lora', 'dtd', (0.700, 0.701, 0.702), **changes),
        *runs('ssf', 'dtd', (0.720, 0.721, 0.722), **changes),
        *runs('full', 'dtd', (0.400, 0.401, 0.402), **changes),
        *runs('lora', 'pets', (0.80, 0.85, 0.90), **changes),
        *runs('ssf', 'pets', (0.81, 0.86, 0.91), **changes),
        *runs('full', 'pets', (0.100, 0.101, 0.102), **changes),
    ]


def test_mean_ranks_share_ties():
    found = ranking(dict(a=[90, 80, 70], b=[90, 70, 75], c=[10, 75, 75]))
    assert found.means == pytest.approx(dict(a=(1.5 + 1 + 3) / 3, b=(1.5 + 3 + 1.5) / 3, c=(3 + 2 + 1.5) / 3))


def test_p_is_friedmans():
    scores = dict(a=[9, 8, 7, 9], b=[6, 7, 6, 5], c=[1, 2, 3, 1])
    found = ranking(scores)
    # by hand: ranks 1, 2, 3 in each of 4 datasets, so 12 / (4 3 4) (4² + 8² + 12²) - 3 4 4 = 8
    assert (
        found.p
        == pytest.approx(friedmanchisquare(*scores.values()).pvalue)
        == pytest.approx(0.018316, abs=1e-6)
    )


@pytest.mark.parametrize('tuners, q', [(3, 2.343), (4, 2.569), (10, 3.164)])  # Demšar 2006, table 5
def test_the_critical_difference_is_nemenyis(tuners, q):
    found = ranking({str(tuner): [tuner] * 14 for tuner in range(tuners)})
    assert found.critical == pytest.approx(q * (tuners * (tuners + 1) / (6 * 14)) ** 0.5, rel=1e-3)


@pytest.mark.parametrize(
    'scores', [dict(a=[1, 2], b=[2, 3]), dict(a=[1], b=[2], c=[3])], ids=['two tuners', 'one dataset']
)
def test_too_few_for_a_test(scores):
    found = ranking(scores)
    assert found.p is None and found.critical is None and len(found.means) == len(scores)


def test_equal_tuners_have_no_p():
    found = ranking(dict(a=[1, 1], b=[1, 1], c=[1, 1]))
    assert found.p is None and set(found.means.values()) == {2}


def test_the_table_says_which_differences_are_noise():
    [table] = make_tables(measured(), MADE)
    assert rank_rows(table) == [
        ['tuner', 'mean rank', 'dtd, against lora', 'pets, against lora'],
        ['ssf', '1.00', '+2.00 (better)', '+1.00 (noise)'],
        ['lora', '2.00', '', ''],
        ['full', '3.00', '-30.00 (worse)', '-74.90 (worse)'],
    ]
    notes = ' '.join(rank_notes(table))
    assert 'Mean ranks of 3 tuners over 2 datasets' in notes
    assert "Friedman's test of equal ranks: p = 0.135." in notes  # by hand: 4 with 2 degrees of freedom
    assert 'less than 2.34 are not told apart (Nemenyi, 5%)' in notes
    assert 'corrected for 4 comparisons' in notes
    page = markdown([table], MADE, [])
    assert '### Ranks' in page and '| ssf | 1.00 | +2.00 (better) | +1.00 (noise) |' in page
    assert '+2.00 (better)' in report(measured(), MADE)
    lines = {(line['tuner'], line['dataset']): line for line in csv.DictReader(io.StringIO(as_csv([table])))}
    assert (
        lines['ssf', 'pets']['against baseline'] == '+1.00 (noise)'
        and lines['ssf', 'pets']['mean rank'] == '1.0'
    )
    assert lines['lora', 'dtd']['against baseline'] == ''


def test_less_of_an_error_is_better():
    [table] = make_tables(measured(lower_is_better=True), MADE)
    shown = {row[0]: row[1:] for row in rank_rows(table)[1:]}
    assert shown['full'] == ['1.00', '-30.00 (better)', '-74.90 (better)']
    assert shown['ssf'] == ['3.00', '+2.00 (worse)', '+1.00 (noise)']


def test_a_tuner_that_lacks_a_dataset_has_no_rank_but_a_difference():
    results = [one for one in measured() if (one['tuner'], one['dataset']) != ('full', 'pets')]
    [table] = make_tables(results, MADE)
    assert [row[0] for row in rank_rows(table)] == ['tuner', 'ssf', 'lora']
    assert set(differences(table)) == {('ssf', 'dtd'), ('ssf', 'pets'), ('full', 'dtd')}


def test_one_seed_cannot_tell():
    [table] = make_tables([one for one in measured() if one['seed'] == 0], MADE)
    assert rank_rows(table)[1][2] == '+2.00 (one seed: cannot tell)'


def test_without_a_baseline_there_are_ranks_alone():
    [table] = make_tables(measured(), replace(MADE, baseline=''))
    assert rank_rows(table)[0] == ['tuner', 'mean rank'] and rank_rows(table)[1] == ['ssf', '1.00']


def test_one_dataset_has_ranks_only_beside_differences():
    results = [one for one in measured() if one['dataset'] == 'dtd']
    of = replace(suite(('lora', 'ssf', 'full'), ('dtd',)), baseline='lora')
    [table] = make_tables(results, of)
    assert [row[2] for row in rank_rows(table)[1:]] == ['+2.00 (better)', '', '-30.00 (worse)']
    assert rank_notes(table)[0] == 'Mean ranks of 3 tuners over one dataset; 1 is best.'
    [table] = make_tables(results, replace(of, baseline=''))
    assert rank_rows(table) == [] and rank_notes(table) == []


def test_one_tuner_has_no_rank():
    [table] = make_tables(measured()[:3], MADE)
    assert (
        rank_rows(table) == [] and rank_notes(table) == [] and '### Ranks' not in markdown([table], MADE, [])
    )
