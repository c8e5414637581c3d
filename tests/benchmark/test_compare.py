"""Comparison of two result sets, against scipy's own test and Holm's correction by its definition."""

import io

import pytest
from rich.console import Console
from scipy import stats

from tests.benchmark.made import failed, result, search, written
from vet.benchmark.compare import as_rich, compare, holm, read_side, welch
from vet.errors import DataError


def seeds(accuracies, **of):
    return [result(seed=seed, accuracy=accuracy, **of) for seed, accuracy in enumerate(accuracies)]


@pytest.mark.parametrize('a, b', [([90, 91, 92.5], [93, 95, 94.2]), ([90, 91], [90.4, 90.6, 90.9, 95])])
def test_welch_is_scipy_s(a, b):
    interval, p = welch(a, b)
    theirs = stats.ttest_ind(b, a, equal_var=False)
    assert p == pytest.approx(theirs.pvalue, abs=1e-12)
    assert interval == pytest.approx(tuple(theirs.confidence_interval(0.95)), abs=1e-9)


def test_seeds_that_do_not_scatter():
    assert welch([90.1] * 3, [90.1] * 3) == ((0, 0), 1)
    interval, p = welch([90.0] * 3, [91.0] * 3)
    assert interval == (1, 1) and p == 0


@pytest.mark.parametrize(
    'chances, corrected',
    [
        # 3 * 0.01; 2 * 0.03; 1 * 0.04, but not below the smaller one's
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.02], [0.02]),
        ([0.6, 0.5], [1.0, 1.0]),
        ([0.04, 0.04], [0.08, 0.08]),
        ([], []),
    ],
)
def test_holm(chances, corrected):
    assert holm(chances) == pytest.approx(corrected)


def test_verdicts():
    a = [
        *seeds([0.900, 0.901, 0.902]),
        *seeds([0.90, 0.94, 0.92], tuner='ssf'),
        *seeds([0.5], tuner='bitfit'),
        *seeds([0.5, 0.6], tuner='only_a'),
    ]
    b = [
        *seeds([0.950, 0.951, 0.952]),
        *seeds([0.91, 0.96, 0.92], tuner='ssf'),
        *seeds([0.9, 0.9], tuner='bitfit'),
    ]
    found = {one.name: one for one in compare(a, b)}
    assert {name: one.verdict for name, one in found.items()} == {
        'cifar100.vitb16.lora': 'differs',
        'cifar100.vitb16.ssf': 'within seed noise',
        'cifar100.vitb16.bitfit': 'one seed: cannot tell',
    }
    assert found['cifar100.vitb16.lora'].difference == pytest.approx(5)
    assert found['cifar100.vitb16.bitfit'].interval is found['cifar100.vitb16.bitfit'].p is None
    low, high = found['cifar100.vitb16.ssf'].interval
    assert low < 1 < high


def test_many_cells_are_corrected_for():
    """One cell whose p is 0.02 differs alone, but not among ten."""
    pair = [0.90, 0.91, 0.92], [0.930, 0.940, 0.955]
    p = welch(*pair)[1]
    assert 0.005 < p < 0.05
    alone = compare(seeds(pair[0]), seeds(pair[1]))
    among = [
        [
            one
            for number in range(10)
            for one in seeds(accuracies if number == 0 else [0.5, 0.6, 0.7], tuner=f't{number}')
        ]
        for accuracies in pair
    ]
    assert [one.verdict for one in alone] == ['differs']
    assert {one.verdict for one in compare(*among)} == {'within seed noise'}
    assert compare(*among)[0].p == pytest.approx(10 * p)


OTHER = dict(train=dict(images=1200, classes=3, sha256='other'), test=dict(images=30, classes=3, sha256='2'))


@pytest.mark.parametrize(
    'b, verdict',
    [
        (seeds([0.9, 0.91], backbone_sha256='b' * 64), 'not compared: different checkpoints'),
        (seeds([0.9, 0.91], data=OTHER), 'not compared: different data'),
        (seeds([0.9, 0.91], metrics=dict(macro_f1=0.9)), 'not compared: different metrics'),
        ([result(seed=0), result(seed=1, config=dict(mixup=1))], 'not compared: B is seeds of 2 configs'),
        ([failed(seed=0)], 'not compared: B is failed'),
        ([search({'lr': 1}, 0.9)], 'not compared: B is not measured'),
    ],
)
def test_what_is_refused(b, verdict):
    [one] = compare(seeds([0.5, 0.51]), b)
    assert (one.verdict, one.difference, one.interval, one.p) == (verdict, None, None, None)


def test_another_config_is_what_one_compares():
    [one] = compare(seeds([0.5, 0.51, 0.52]), seeds([0.9, 0.91, 0.92], config=dict(mixup=1)))
    assert one.verdict == 'differs'


def test_several_suites_are_kept_apart():
    a = [*seeds([0.5, 0.51]), *seeds([0.9, 0.91], suite='second')]
    assert [one.name for one in compare(a, a)] == ['made/cifar100.vitb16.lora', 'second/cifar100.vitb16.lora']
    assert [one.name for one in compare(seeds([0.5, 0.51]), seeds([0.9, 0.91], suite='second'))] == [
        'cifar100.vitb16.lora'
    ]


def test_what_a_side_may_be(tmp_path):
    (tmp_path / 'results' / 'made').mkdir(parents=True)
    written(tmp_path / 'results' / 'made', *seeds([0.5, 0.6]), *seeds([0.7], tuner='ssf'))
    (tmp_path / 'results' / 'other.json').write_text('[]')
    assert (
        len(read_side(str(tmp_path / 'results'))) == len(read_side(str(tmp_path / 'results' / 'made'))) == 3
    )
    assert [one['tuner'] for one in read_side(str(tmp_path / 'results/*/*.ssf.*'))] == ['ssf']
    with pytest.raises(DataError, match="none' has no whole result; give a folder of results"):
        read_side(str(tmp_path / 'none'))


def test_a_run_that_is_there_twice_is_refused(tmp_path):
    for folder in ('made', 'copied'):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder, *seeds([0.5, 0.6]))
    for place in (tmp_path, tmp_path / '*/*seed0.json'):
        with pytest.raises(
            DataError,
            match=r'has 2 results of one run, cifar100\.vitb16\.lora\.seed0 of made; give the folder of only one',
        ):
            read_side(str(place))
    assert len(read_side(str(tmp_path / 'copied'))) == 2


def test_the_table_says_what_it_is():
    shown = io.StringIO()
    Console(file=shown, width=160).print(
        as_rich(compare(seeds([0.90, 0.91, 0.92]), seeds([0.95, 0.96, 0.97])))
    )
    for part in (
        'cifar100.vitb16.lora',
        '91.00 ± 1.00 (3)',
        '96.00 ± 1.00 (3)',
        '+5.00',
        '+2.73 … +7.27',
        '0.004',
        'differs',
        'Holm',
    ):
        assert part in shown.getvalue(), shown.getvalue()
