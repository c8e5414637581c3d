"""Tables: what stands in them, what does not, and what they say of how it was obtained."""

import csv
import io
import statistics

import pytest

from tests.benchmark.made import B16, ENVIRONMENT, failed, result, search, suite, written
from tests.benchmark.runs import write_suite
from vet.benchmark.results import read_results
from vet.benchmark.suite import load_suite
from vet.benchmark.table_files import as_csv, markdown, write_tables
from vet.benchmark.tables import CARDS, make_tables
from vet.datasets.vtab import GROUPS


def rows(results, of=None):
    """The accuracy rows of the only table, by tuner."""
    [table] = make_tables(results, of or suite())
    header, *lines = table.accuracy()
    return header, {line[0]: line[1:] for line in lines if line[0] != 'published'}


def seeds(accuracies, **of):
    return [result(seed=seed, accuracy=accuracy, **of) for seed, accuracy in enumerate(accuracies)]


def test_mean_and_sample_deviation_in_percent():
    # by hand: mean 92, squares 4 + 0 + 4 over n - 1 = 2
    header, lines = rows(seeds([0.90, 0.92, 0.94]))
    assert header == ['tuner', 'cifar100']
    assert lines == {'lora': ['92.00 ± 2.00'], 'ssf': ['not measured']}


@pytest.mark.parametrize(
    'results, shown',
    [
        (seeds([0.9]), '90.00 (1 of 3 seeds)'),
        (seeds([0.90, 0.92]), '91.00 ± 1.41 (2 of 3 seeds)'),
        ([*seeds([0.90, 0.92]), failed(seed=2)], '91.00 ± 1.41 (2 of 3 seeds, 1 failed)'),
        (seeds([0.9] * 4), '90.00 ± 0.00 (4 seeds)'),
        ([failed(seed=0), failed(seed=1)], 'failed'),
        ([search({'train.optimizer.lr': 0.1}, 0.99)], 'not measured'),
        ([failed(is_search=True, point={'lr': lr}) for lr in (1, 2)], 'failed'),
        ([failed(is_search=True, point={'lr': 1}), search({'lr': 2}, 0.9)], 'not measured'),
        ([result(seed=0), result(seed=1, config=dict(mixup=0.8))], 'seeds of 2 configs'),
        ([], 'not measured'),
    ],
)
def test_what_a_cell_says(results, shown):
    assert rows(results)[1]['lora'] == [shown]


def test_searches_are_no_numbers_but_their_point_is_shown():
    point = {'train.optimizer.lr': 0.01}
    results = [
        *seeds([0.5, 0.5, 0.5], point=point),
        *(search({'train.optimizer.lr': lr}, 0.77) for lr in (0.1, 0.01)),
    ]
    [table] = make_tables(results, suite(['lora']))
    assert table.accuracy()[1] == ['lora', '50.00 ± 0.00']
    assert table.costs()[0][-1] == 'chosen by search' and table.costs()[1][-1] == 'train.optimizer.lr=0.01'
    text = markdown([table], suite(), []) + as_csv([table])
    assert '77' not in text and 'train.optimizer.lr=0.01' in as_csv([table])


def test_two_checkpoints_never_share_a_table():
    results = [*seeds([0.9] * 3), *seeds([0.8] * 3, tuner='ssf', backbone_sha256='b' * 64)]
    first, second = make_tables(results, suite())
    assert (first.label, second.label) == ('vitb16 (1 of 2)', 'vitb16 (2 of 2)')
    assert [row[1] for row in first.accuracy() if row[0] in ('lora', 'ssf')] == [
        '90.00 ± 0.00',
        'not measured',
    ]
    assert [row[1] for row in second.accuracy() if row[0] in ('lora', 'ssf')] == [
        'not measured',
        '80.00 ± 0.00',
    ]
    page = markdown([first, second], suite(), [])
    assert page.count('vitb16 has results of several checkpoints: a table for each.') == 2
    assert page.count('a' * 64) == page.count('b' * 64) == 1


def test_different_images_never_share_a_column():
    other = dict(train=dict(images=999, classes=3, sha256='9'), test=dict(images=30, classes=3, sha256='2'))
    header, lines = rows([*seeds([0.9] * 3), *seeds([0.8] * 3, tuner='ssf', data=other)])
    assert header[1:3] == ['cifar100 (1 of 2)', 'cifar100 (2 of 2)']
    assert lines['lora'][:2] == ['90.00 ± 0.00', 'not measured'] and lines['ssf'][:2] == [
        'not measured',
        '80.00 ± 0.00',
    ]


def test_a_backbone_that_nobody_measured_has_an_empty_table():
    tables = make_tables(seeds([0.9] * 3), suite(backbones=('vitb16', 'vitl14')))
    assert [table.label for table in tables] == ['vitb16', 'vitl14']
    assert (
        tables[1].accuracy()[1] == ['lora', 'not measured'] and 'nothing was measured' in tables[1].notes()[0]
    )
    assert tables[1].accuracy()[2] == ['published', '90.96 [1]']


def test_references_stand_beneath_with_their_source_and_only_of_the_checkpoint():
    [table] = make_tables(seeds([0.9] * 3), suite(['lora', 'ssf', 'no_such_method']))
    assert table.checkpoint == B16
    lines = table.accuracy()
    assert [line[0] for line in lines] == ['tuner', 'lora', 'published', 'ssf', 'published', 'no_such_method']
    # 93.99 is of another checkpoint
    assert lines[2][1].startswith('92.24 [1], 92.43 [2]') and lines[4][1] == '92.67 [3]'
    page = markdown([table], suite(), [])
    assert (
        '- [1] ModelScope card' in page
        and 'recipe not published' in page
        and '93.99' not in page + as_csv([table])
    )
    assert '92.24 (ModelScope card' in as_csv([table])


def test_published_values_are_of_the_name_and_it_is_said_where_the_weights_are_a_file_s():
    def table(**changes):
        entry = dict(type='Timm', name=B16, **changes)
        [made] = make_tables(
            [one | dict(config=one['config'] | dict(model=dict(backbone=entry))) for one in seeds([0.9] * 3)],
            suite(['lora']),
        )
        return made

    of_file, random = table(checkpoint='w.npz', pretrained=False), table(pretrained=False)
    assert [row[0] for row in of_file.accuracy()] == [
        'tuner',
        'lora',
        f"published (of {B16}; the weights here are a file's, sha256 {'a' * 12}…)",
    ]
    assert of_file.notes()[0].startswith(f'Checkpoint: {B16} (weights of a file), weights of sha256 aaa')
    assert of_file.title == 'vitb16 (weights of a file)' and f'{B16} (weights of a file)' in as_csv([of_file])
    assert (
        len(random.accuracy()) == 2 and random.sources() == [] and random.title == 'vitb16 (random weights)'
    )


VTAB = dict(datasets=['cifar', 'dtd', 'eurosat'], groups=['natural', 'natural', 'specialized'])


def test_both_means_where_all_is_measured():
    results = [
        one
        for dataset, accuracy, group in zip(VTAB['datasets'], (0.5, 0.7, 0.9), VTAB['groups'])
        for one in seeds([accuracy] * 3, dataset=dataset, group=group)
    ]
    header, lines = rows(
        [*results, *seeds([0.1] * 3, tuner='ssf', dataset='dtd', group='natural')], suite(**VTAB)
    )
    assert header[-2:] == ['mean of 3 datasets', 'mean of 2 groups']
    assert lines['lora'][-2:] == ['70.00', '75.00']  # (50 + 70 + 90) / 3, ((50 + 70) / 2 + 90) / 2
    assert lines['ssf'] == ['not measured', '10.00 ± 0.00', 'not measured', 'not measured', 'not measured']


def test_without_a_group_for_each_dataset_there_is_no_mean_of_groups():
    header, _ = rows([], suite(datasets=['a', 'b', 'c'], groups=['x', 'y']))
    assert header == ['tuner', 'a', 'b', 'c', 'mean of 3 datasets']


def test_published_means_stand_beneath_means():
    tasks = {task: group for group, tasks in GROUPS.items() for task in tasks}
    [table] = make_tables([], suite(['vpt_deep'], list(tasks), groups=tasks.values(), name='mine'))
    assert table.accuracy()[0][-2:] == ['mean of 19 datasets', 'mean of 3 groups']
    assert [cell[:5] for cell in table.accuracy()[2][-2:]] == [
        '69.40',
        '72.00',
    ] and 'NOAH' not in table.sources()[0]
    [cards] = make_tables([], suite(['lora'], sorted(CARDS), name='mine'))
    assert [row[-1][:5] for row in cards.accuracy()] == ['mean ', 'not m', '89.84']
    assert len(make_tables([], suite(['lora'], sorted(CARDS)[1:], name='mine'))[0].accuracy()[2][-1]) == 0
    others = [f'task{number}' for number in range(19)]
    for datasets, groups in ((others, list(tasks.values())), (list(tasks), others[:3] * 6 + others[:1])):
        [other] = make_tables([], suite(['vpt_deep'], datasets, groups=groups, name='vtab1k'))
        assert len(other.accuracy()) == 2


@pytest.mark.parametrize(
    'changes',
    [
        dict(
            data=dict(
                train=dict(images=9, classes=3, sha256='9'), test=dict(images=30, classes=3, sha256='2')
            )
        ),
        dict(metrics=dict(macro_f1=0.5)),
    ],
    ids=['two columns of a dataset', 'two metrics'],
)
def test_no_mean_over_what_does_not_go_together(changes):
    results = [*seeds([0.5] * 3, dataset='a'), *seeds([0.7] * 3, dataset='b')]
    of = suite(['lora', 'ssf'], ['a', 'b'])
    assert rows(results, of)[0][-1] == 'mean of 2 datasets'
    header, _ = rows([*results, *seeds([0.6] * 3, tuner='ssf', dataset='a', **changes)], of)
    assert not any('mean' in name for name in header)


def test_results_that_the_suite_no_longer_asks_for_are_marked(unbroken, tmp_path):
    results = read_results(unbroken / 'results' / 'tiny')

    def marked(more):
        [table] = make_tables(results, load_suite(write_suite(tmp_path, 'seeds = [1, 0]\n' + more)))
        shown = [row[0] for row in table.accuracy()[1:] if row[1].endswith('(of an earlier config)')]
        lines = csv.DictReader(io.StringIO(as_csv([table])))
        assert shown == [line['tuner'] for line in lines if line['state'] == 'measured, of an earlier config']
        return shown

    assert marked('') == []
    assert marked("options = {'train.label_smoothing': 0.1}") == ['linear', 'bias']
    assert marked(
        "tuners['bias'] = dict(tuners=[dict(type='BitFit')], options={'train.label_smoothing': 0.1})"
    ) == ['bias']


def test_costs():
    sizes = dict(tuners=2000, head=100, trainable=2100, backbone=86000, total=88100)
    results = [
        *seeds([0.9] * 3),
        *seeds([0.9] * 3, dataset='flowers102', parameters=sizes | dict(tuners=1000, trainable=1100)),
    ]
    [table] = make_tables(results, suite(datasets=['cifar100', 'flowers102']))
    header, line = table.costs()
    assert header == [
        'tuner',
        'parameters without head',
        'with head',
        'file, bytes',
        'peak memory, MiB',
        'training images/s',
        'wall time, s',
        'epochs',
    ]
    assert line == ['lora', '1,000', '1,100 … 1,300', '5,200', '900', '900', '11.0', '3']


def test_a_chosen_value_at_the_edge_of_its_grid_is_said():
    made = suite()
    made.tuners['lora'] = dict(tuners=[dict(type='LoRA')], grid={'train.optimizer.lr': [1e-3, 1e-2, 1e-1]})
    notes = {
        lr: make_tables([result(point={'train.optimizer.lr': lr})], made)[0].notes() for lr in (1e-3, 1e-2)
    }
    said = [
        'cifar100, vitb16, lora: the best train.optimizer.lr is 0.001, at the edge of the grid '
        '[0.001, 0.01, 0.1]. A wider grid may give a better result.'
    ]
    assert [[note for note in notes[lr] if 'edge' in note] for lr in notes] == [said, []]


def test_every_metric_that_was_asked_for_is_in_the_tables():
    runs = [
        result(seed=seed, metrics=dict(accuracy=0.9, ece=ece, top5=1.0))
        for seed, ece in enumerate((0.1, 0.2))
    ]
    [table] = make_tables(runs, suite())
    assert table.others() == [
        ['tuner', 'dataset', 'ece', 'top5'],
        ['lora', 'cifar100', '0.15 ± 0.07071', '1 ± 0'],  # by hand: squares 0.0025 twice over n - 1 = 1
    ]
    assert '| lora | cifar100 | 0.15 ± 0.07071 | 1 ± 0 |' in markdown([table], suite(), [])
    [line, *_] = csv.DictReader(io.StringIO(as_csv([table])))
    assert line['other metrics'] == 'ece 0.15 ± 0.07071; top5 1 ± 0'
    alone = [result(seed=seed, metrics=dict(accuracy=0.9)) for seed in range(2)]
    assert make_tables(alone, suite())[0].others() == []


def test_no_costs_of_a_cell_without_a_mean():
    mixed = [
        result(seed=0, dataset='dtd'),
        result(seed=1, dataset='dtd', file_bytes=1, config=dict(mixup=0.8)),
    ]
    [table] = make_tables([*seeds([0.9] * 3), *mixed], suite(['lora'], ['cifar100', 'dtd']))
    assert table.accuracy()[1][2] == 'seeds of 2 configs' and table.costs()[1][3] == '5,200'


def test_notes_say_how_numbers_were_obtained():
    warning = 'vitb16 takes images of mean 0.485, but its weights were trained with 0.5.'
    other = ENVIRONMENT | dict(device='NVIDIA H200', git_revision='3475946f1bb1', git_changes=True)
    results = [result(seed=0, warnings=[warning]), result(seed=1, warnings=[warning], environment=other)]
    notes = make_tables(results, suite())[0].notes()
    assert 'The last epoch counts.' in notes and notes.count(f'Warning: {warning}') == 1
    assert 'cifar100: accuracy; 1,200 train images, 30 test images.' in notes
    assert [note for note in notes if 'H200' in note][0].startswith(
        'Measured on NVIDIA H200, 2 cores, threads: 1; vet 0.1.0'
    )
    assert 'From 2 versions of the code: 1803b872465a, 3475946f1bb1 with changes.' in notes
    assert not any('versions of the code' in note for note in make_tables(results[:1], suite())[0].notes())
    by_hash = [one | dict(code=code * 64) for one, code in zip(results, 'de')]
    assert f'From 2 versions of the code: {"d" * 12}, {"e" * 12}.' in make_tables(by_hash, suite())[0].notes()


def test_failures_are_listed_and_markdown_stays_whole():
    page = markdown([], suite(), [failed(error='bad | value\n<b>')])
    assert '- cifar100.vitb16.lora.seed0: bad \\| value &lt;b>' in page


def test_csv_has_numbers_in_full():
    results = seeds([0.9, 0.91, 0.93])
    lines = list(csv.DictReader(io.StringIO(as_csv(make_tables(results, suite())))))
    assert [line['state'] for line in lines] == ['measured', 'not measured'] and lines[1]['mean'] == ''
    assert float(lines[0]['mean']) == pytest.approx(100 * 2.74 / 3, abs=1e-9)
    assert float(lines[0]['std']) == pytest.approx(statistics.stdev([90, 91, 93]), abs=1e-9)
    assert lines[0]['checkpoint'] == B16 and lines[0]['sha256'] == 'a' * 64 and lines[0]['seeds'] == '3'


def test_files_cut_short_are_no_results(tmp_path):
    written(tmp_path, *seeds([0.9, 0.92, 0.94]))
    path = tmp_path / 'cifar100.vitb16.lora.seed2.json'
    path.write_text(path.read_text()[:-30])
    assert rows(read_results(tmp_path))[1]['lora'] == ['91.00 ± 1.41 (2 of 3 seeds)']


def test_of_a_real_campaign(unbroken, tmp_path):
    """Two tuners and two seeds that were trained: the numbers of the page are those of the files."""
    results = read_results(unbroken / 'results' / 'tiny')
    of = load_suite(write_suite(tmp_path, 'seeds = [0, 1]'))
    [table] = write_tables(tmp_path, results, of)
    for tuner in ('linear', 'bias'):
        accuracies = [100 * one['metrics']['accuracy'] for one in results if one['tuner'] == tuner]
        line = f'| {tuner} | {statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f} |'
        assert line in (tmp_path / 'table.md').read_text()
    assert [row[:3] for row in table.costs()[1:]] == [['linear', '0', '130'], ['bias', '4,352', '4,482']]
    assert len((tmp_path / 'table.csv').read_text().splitlines()) == 3
