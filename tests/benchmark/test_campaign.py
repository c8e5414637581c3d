"""A campaign makes what is not done, chooses on validation images alone, outlives failures, and ends
the same however often killed.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import timm
import torch

from tests.benchmark.conftest import TWO_SEEDS
from tests.benchmark.runs import campaign, here, lasting, results, run_campaign
from vet.benchmark import timing
from vet.benchmark.results import code_sha256, read_result, result_path, write_result
from vet.benchmark.worker import ATTEMPT, bury, head
from vet.datasets.digits import Digits
from vet.errors import DataError, UserError
from vet.registry import DATASETS

GRID = (
    "grid = {'train.optimizer.lr': [1e-4, 1e-2, 1e-3]}\ntuners = dict(linear=[dict(type='LinearProbe')])\n"
    + TWO_SEEDS
)


class NoTest(Digits):
    """The test images may be counted, but not looked at."""

    def __init__(self, split, **kwargs):
        super().__init__(split=split, **kwargs)
        self.split = split

    def __getitem__(self, index):
        assert self.split != 'test', 'a test image was read'
        return super().__getitem__(index)


def write(made, run, **result):
    """A result of a run that nobody made."""
    write_result(
        result_path(made.results, run),
        head(made.job(run)) | dict(status='done', metrics={}, validation=None) | result,
    )


def test_results_of_another_config_are_told_before_they_are_replaced(tmp_path, capfd):
    def told(**options):
        campaign(tmp_path, lambda jobs: None, options=options, only='*.linear').run()
        return 'are of another config' in ' '.join(capfd.readouterr().err.split())

    assert not told()
    made = campaign(tmp_path, only='*.linear')
    write(made, made.plan()[0][0])
    assert not told() and told(**{'train.max_epochs': 2})


def judged(*validations):
    """A launcher that writes the searches' validation results, None for a failure, and keeps the names
    of all other jobs.
    """

    def launch(jobs):
        for job in jobs:
            if not job.run.is_search:
                launch.others.append(job.run)
        searches = [job for job in jobs if job.run.is_search]
        for job, value in zip(searches, validations):
            result = (
                dict(status='failed', error='-')
                if value is None
                else dict(status='done', metrics={}, validation=value)
            )
            write_result(Path(job.result), head(job) | result)

    launch.others = []
    return launch


def test_what_is_done_is_not_made_again(unbroken, tmp_path):
    shutil.copytree(unbroken / 'results', tmp_path / 'results')
    jobs = []
    made = campaign(tmp_path, jobs.extend, TWO_SEEDS)
    assert len(made.run()) == 4 and jobs == []
    changed = campaign(tmp_path, jobs.extend, TWO_SEEDS + "\noptions = {'train.label_smoothing': 0.1}")
    changed.run()
    assert [job.run.name for job in jobs] == [
        f'few.vit.{tuner}.seed{seed}' for tuner in ('linear', 'bias') for seed in (0, 1)
    ]
    assert len({job.work_dir for job in jobs} | {made.job(job.run).work_dir for job in jobs}) == 4


def test_searches_read_no_test_image_and_the_best_on_validation_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS.module_dict, 'Digits', NoTest)
    made = campaign(tmp_path, more=GRID)
    cell = made.cells[0]
    searches = cell.searches()
    here([made.job(run) for run in searches])
    found = [read_result(result_path(made.results, run)) for run in searches]
    assert [result['status'] for result in found] == ['done'] * 3, found
    assert all(
        result['metrics'] == {} and 'confusion' not in result and result['before'] is None for result in found
    )
    assert found[1]['validation'] > found[0]['validation']
    monkeypatch.undo()
    runs = made.run()
    assert [run.point for run in runs] == [{'train.optimizer.lr': 1e-2}] * 2
    assert [
        read_result(result_path(made.results, run))['config']['train']['optimizer']['lr'] for run in runs
    ] == [1e-2] * 2


def test_a_run_that_counts_reads_the_test_split(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS.module_dict, 'Digits', NoTest)
    campaign(tmp_path, only='*.linear').run()
    assert 'a test image was read' in results(tmp_path)['few.vit.linear.seed0']['error']


@pytest.mark.parametrize(
    'validations, chosen',
    [((0.5, 0.7, 0.6), 1e-2), ((0.7, 0.5, 0.7), 1e-4), ((0.5, None, 0.6), 1e-3), ((None, None, 0.0), 1e-3)],
)
def test_the_first_of_the_best_points_is_chosen(tmp_path, validations, chosen):
    launch = judged(*validations)
    made = campaign(tmp_path, launch, GRID)
    runs = made.run()
    assert runs == launch.others and [(run.seed, run.point['train.optimizer.lr']) for run in runs] == [
        (0, chosen),
        (1, chosen),
    ]


def test_of_an_error_the_least_is_chosen(tmp_path):
    metrics = "\nevaluation['metrics'] = ['accuracy', 'ece']"
    launch = judged(0.5, 0.7, 0.6)
    made = campaign(tmp_path, launch, GRID + metrics)
    for run in made.cells[0].searches():
        lr = run.point['train.optimizer.lr']
        write(made, run, validation={1e-4: 0.5, 1e-2: 0.7, 1e-3: 0.6}[lr], lower_is_better=True)
    assert [run.point['train.optimizer.lr'] for run in made.run()] == [1e-4, 1e-4]


@pytest.mark.parametrize('metrics, is_lower', [("['accuracy']", False), ("['ece', 'accuracy']", True)])
def test_a_result_says_whether_less_is_better(tmp_path, metrics, is_lower):
    campaign(tmp_path, more=f"\nevaluation['metrics'] = {metrics}", only='*.linear').run()
    assert results(tmp_path)['few.vit.linear.seed0']['lower_is_better'] is is_lower


@pytest.mark.parametrize('validations, is_edge', [((0.5, 0.7, 0.6), True), ((0.5, 0.6, 0.7), False)])
def test_a_best_value_at_the_edge_of_the_grid_is_said(tmp_path, caplog, validations, is_edge):
    campaign(tmp_path, judged(*validations), GRID).run()
    said = 'the best train.optimizer.lr is 0.01, at the edge of the grid [0.0001, 0.01, 0.001]'
    assert (said in caplog.text) == is_edge == ('edge' in caplog.text)


def test_a_cell_whose_searches_all_failed_has_no_runs(tmp_path):
    launch = judged(None, None, None)
    assert campaign(tmp_path, launch, GRID).run() == launch.others == []


def test_no_point_is_chosen_from_some_of_the_searches_or_from_old_ones(tmp_path):
    assert campaign(tmp_path, judged(0.1, 0.2), GRID).run() == []
    campaign(tmp_path, judged(0.3, 0.2, 0.1), GRID).run()
    changed = GRID + "\noptions = {'train.label_smoothing': 0.1}"
    assert campaign(tmp_path, lambda jobs: None, changed).run() == []
    assert campaign(tmp_path, judged(0.1, 0.2, 0.3), changed).run()[0].point == {'train.optimizer.lr': 1e-3}


def test_a_failing_run_is_recorded_and_the_others_go_on(tmp_path):
    broken = tmp_path / 'images/train/a/1.png'
    for split in ('train', 'test'):
        for label in 'ab':
            (tmp_path / 'images' / split / label).mkdir(parents=True)
            for i in range(2):
                Digits(split=split).open(Digits(split=split).samples[i][0]).save(
                    tmp_path / f'images/{split}/{label}/{i}.png'
                )
    broken.write_bytes(broken.read_bytes()[:40])
    campaign(
        tmp_path,
        only='*.linear',
        more=f"""
datasets['wild'] = dict(few, options={{'train.max_epochs': 30, 'train.optimizer': dict(type='SGD', lr=1000, weight_decay=1)}})
datasets['torn'] = {{split: dict(type='ImageFolder', path={str(tmp_path / 'images')!r} + '/' + split) for split in ('train', 'test')}}
datasets['last'] = few""",
    ).run()
    found = {name.partition('.')[0]: result for name, result in results(tmp_path).items()}
    assert {name: result['status'] for name, result in found.items()} == dict(
        few='done', last='done', torn='failed', wild='failed'
    )
    assert 'Lower train.optimizer.lr' in found['wild']['error'] and 'Error' not in found['wild']['error']
    assert str(broken) in found['torn']['error']


def test_a_second_campaign_replaces_no_result_of_a_campaign_that_works(tmp_path):
    """With the same options, or with other runs, a second campaign works beside the first."""
    made = []

    def others(jobs):
        made.append(jobs)
        if len(made) > 1:
            return
        with pytest.raises(
            UserError, match=r'makes the run few\.vit\..* now, with another config.*--results'
        ):
            campaign(tmp_path, others, options={'train.max_epochs': 2}).run()
        assert len(made) == 1
        campaign(tmp_path, others).run()
        campaign(tmp_path, others, only='*.bias').run()

    campaign(tmp_path, others, only='*.linear').run()
    campaign(tmp_path, others, options={'train.max_epochs': 2}).run()  # the lock has ended
    assert len(made) == 4


@pytest.mark.slow
def test_a_failed_run_is_tried_again(tmp_path):
    made = campaign(tmp_path, only='*.linear')
    [run] = made.cells[0].runs()
    write(made, run, status='failed', error='the machine was struck by lightning')
    made.run()
    assert results(tmp_path)[run.name]['status'] == 'done'


def test_a_point_that_diverged_is_not_tried_again(tmp_path):
    made = campaign(tmp_path, judged(0.5, 0.7, 0.6), GRID)
    search = made.cells[0].searches()[0]
    for diverged in (False, True):
        write(made, search, status='failed', error='-', diverged=diverged)
        assert made.is_done(search) == diverged
    write(made, made.cells[0].runs({})[0], status='failed', error='-', diverged=True)
    assert not made.is_done(made.cells[0].runs({})[0])


def test_a_death_is_recorded_but_not_over_a_result(tmp_path):
    made = campaign(tmp_path)
    first, second = (made.job(cell.runs()[0]) for cell in made.cells)
    write(made, second.run, validation=0.5)
    for job in (first, second):
        bury(job, 'killed by signal 9')
    found = results(tmp_path)
    assert found[second.run.name]['status'] == 'done'
    assert found[first.run.name]['error'] == 'the process ended (killed by signal 9): it said nothing'


def test_all_that_is_missing_is_named_at_once_and_nothing_runs(tmp_path):
    jobs = []
    with pytest.raises(DataError) as error:
        campaign(
            tmp_path,
            jobs.extend,
            GRID
            + """
datasets |= {name: dict(train=dict(type=name, split='train'), test=dict(type=name, split='test')) for name in ('Flowers102', 'CUB200')}
backbones |= {name: dict(type='timm', name='vit_tiny_patch16_224', checkpoint=f'/nowhere/{name}.pth') for name in ('one', 'two')}
tuners['side'] = dict(tuners=[dict(type='SideTuning', side=dict(type='torchvision', name='alexnet', checkpoint='/nowhere/side.pth'))], grid={})
""",
        )
    lines = str(error.value).splitlines()
    assert 'no run was started' in lines[0] and jobs == [] and not (tmp_path / 'results').exists()
    for what in ('Flowers102: ', 'CUB200: ', '/nowhere/one.pth', '/nowhere/two.pth', '/nowhere/side.pth'):
        assert sum(what in line for line in lines) == 1, (what, lines)


def test_a_side_networks_weights_are_part_of_the_identity(tmp_path):
    def identity(pretrained):
        made = campaign(
            tmp_path,
            only='*.side',
            more="tuners['side'] = [dict(type='SideTuning', side=dict(type='DigitsViT', pretrained=True))]",
        )
        if not pretrained:
            other = next(key for key in made._backbones if 'pretrained' in key)
            made._backbones[other] = 'other weights', ()
        return made.job(made.cells[0].runs()[0]).identity

    assert identity(True) == identity(True) != identity(False)


def test_the_plan_lists_searches_and_runs_with_what_they_may_take(tmp_path):
    made = campaign(tmp_path, judged(0.1, 0.3, 0.2), GRID)
    searches = made.cells[0].searches()
    assert made.plan() == [
        *((run, False) for run in searches),
        *((run, False) for run in made.cells[0].runs(made.cells[0].points[0])),
    ]
    assert made.seconds(searches[0]) is None
    chosen = made.run()
    write(made, chosen[0], metrics=dict(accuracy=0.5), train_images=100, epochs=2, wall_seconds=10.0)
    made = campaign(tmp_path, more=GRID)
    for run in searches:
        write(
            made,
            run,
            validation=0.1 + run.point['train.optimizer.lr'],
            train_images=100,
            epochs=1,
            wall_seconds=3.0,
        )
    assert made.plan() == [*((run, True) for run in searches), (chosen[0], True), (chosen[1], False)]
    images = made.job(chosen[1]).data['train']['images']
    assert made.seconds(chosen[1]) == pytest.approx(10 * images / 200)


@pytest.mark.slow
def test_features_kept_for_all_seeds_change_no_number(tmp_path, unbroken, monkeypatch):
    monkeypatch.setenv('VET_CACHE_DIR', str(tmp_path / 'cache'))
    kept = (
        "tuners['linear'] = dict(tuners=[dict(type='LinearProbe')], options={'train.cache_features': True})\n"
        + TWO_SEEDS
    )
    made = campaign(tmp_path, more=kept, only='*.linear')
    made.run()
    assert len(list((tmp_path / 'cache').glob('*.npy'))) == 2  # of training and test images
    assert all(done for _, done in made.plan())
    for name, found in results(tmp_path).items():
        expected = results(unbroken)[name]
        assert found['identity'] != expected['identity']
        assert all(
            found[key] == expected[key]
            for key in ('metrics', 'per_class', 'confusion', 'steps', 'parameters', 'file_bytes')
        )
        assert [record['loss'] for record in found['curves']] == [
            record['loss'] for record in expected['curves']
        ]


@pytest.mark.slow
def test_what_is_like_nothing_measured_is_timed_once(tmp_path, monkeypatch):
    made = campaign(tmp_path, more='seeds = [0, 1]')
    runs = [run for cell in made.cells for run in cell.runs()]
    found = {run.name: made.timed_seconds(run) for run in runs[::2]}
    assert set(found) == {'few.vit.linear.seed0', 'few.vit.bias.seed0'} and all(
        0 < seconds < 60 for seconds in found.values()
    )
    assert not results(tmp_path) and not (tmp_path / 'work').exists()
    monkeypatch.setattr(
        timing, 'build_trainer', lambda **_: (_ for _ in ()).throw(RuntimeError('out of memory'))
    )
    assert made.timed_seconds(runs[1]) == found['few.vit.linear.seed0']
    assert campaign(tmp_path).timed_seconds(runs[0]) is None and not timing.console.quiet


def test_a_result_s_code_is_that_of_plugins_too(tmp_path):
    (tmp_path / 'counted_plugin.py').write_text('A = 1')
    campaign(tmp_path, more="custom_imports = dict(imports=['counted_plugin'])", only='*.linear').run()
    [result] = results(tmp_path).values()
    assert result['code'] == code_sha256(('counted_plugin',)) != code_sha256()


def test_the_plan_is_at_the_best_point_though_another_failed(tmp_path):
    made = campaign(tmp_path, judged(0.1, 0.3, None), GRID)
    chosen = made.run()
    write(made, chosen[0])
    assert made.plan()[2:] == [(made.cells[0].searches()[2], False), (chosen[0], True), (chosen[1], False)]
    assert chosen[0].point == {'train.optimizer.lr': 1e-2}


@pytest.mark.slow
def test_wall_time_is_of_all_attempts(tmp_path):
    made = campaign(tmp_path, only='*.linear')
    job = made.job(made.cells[0].runs()[0])
    (Path(job.work_dir) / 'run').mkdir(parents=True)
    last = Path(job.work_dir) / 'run/last'
    last.touch()
    os.utime(last, (5000, 5000))
    (Path(job.work_dir) / ATTEMPT).write_text(json.dumps(dict(began=4000, earlier=300)))
    began = time.time()
    made.run()
    assert 1300 < results(tmp_path)[job.run.name]['wall_seconds'] <= 1300 + time.time() - began


def test_two_names_of_the_same_weights_are_refused(tmp_path):
    kwargs = dict(img_size=32, patch_size=16, depth=1, embed_dim=48, num_heads=3)
    torch.save(
        timm.create_model('vit_tiny_patch16_224', num_classes=0, **kwargs).state_dict(), tmp_path / 'w.pth'
    )

    def made(*names):
        entries = [
            dict(type='timm', name=name, checkpoint=str(tmp_path / 'w.pth'), kwargs=kwargs) for name in names
        ]
        return campaign(tmp_path, more=f'backbones = {dict(zip("ab", entries))}')

    with pytest.raises(
        DataError,
        match='vit_tiny_patch16_224 and vit_small_patch16_224: their weights are the same, of sha256 ',
    ):
        made('vit_tiny_patch16_224', 'vit_small_patch16_224')
    assert len(made('vit_tiny_patch16_224', 'vit_tiny_patch16_224').cells) == 4


def test_the_test_split_is_neither_for_training_nor_for_validation(tmp_path):
    with pytest.raises(DataError) as error:
        campaign(
            tmp_path,
            more="""
datasets = dict(a=dict(few, val=few['test']), b=dict(few, train=few['test']), c=few)""",
        )
    lines = str(error.value).splitlines()
    assert [line.partition(' has')[0].partition(' share')[0] for line in lines[1:]] == [
        'a: dataset.val',
        'b: dataset.train and dataset.test',
    ]


def test_data_are_of_all_that_holds_images_out(tmp_path):
    """One dataset, of which some tuners' runs hold images out and others do not, and some more than
    others.
    """
    made = campaign(
        tmp_path,
        more="""
tuners = {name: dict(tuners=[dict(type='LinearProbe')], options=options) for name, options in dict(
    all={}, some={'evaluation.select': 'best'}, more={'evaluation.select': 'best', 'evaluation.holdout': 0.5},
    stop={'train.early_stop': 3}).items()}""",
    )
    found = [made.job(cell.runs()[0]).data for cell in made.cells]
    images = [data['train']['images'] for data in found]
    assert ['val' in data for data in found] == [False, True, True, True]
    assert images[0] > images[1] == images[3] > images[2]


@pytest.mark.parametrize('seed', [0, 1, 2])
@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_one_that_was_not(process, unbroken, tmp_path, seed):
    kept, draw = {}, random.Random(seed)
    # a run writes more than 40 times, four results 12 times
    for below, first, last in (('', 4, 40), ('results', 7, 11), ('', 4, 40)):
        child = process(run_campaign, tmp_path, TWO_SEEDS, (tmp_path / below, draw.randint(first, last)))
        child.join()
        assert child.exitcode == -signal.SIGKILL
        kept |= {path: path.stat().st_mtime_ns for path in (tmp_path / 'results/tiny').glob('*.json')}
    last = process(run_campaign, tmp_path, TWO_SEEDS)
    last.join()
    assert last.exitcode == 0 and kept
    assert {name: lasting(result) for name, result in results(tmp_path).items()} == {
        name: lasting(result) for name, result in results(unbroken).items()
    }
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


@pytest.mark.slow
def test_two_campaigns_at_once_make_each_run_once(process, tmp_path):
    children = [process(run_campaign, tmp_path, TWO_SEEDS) for _ in range(2)]
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert [result['status'] for result in results(tmp_path).values()] == ['done'] * 4
    logs = list((tmp_path / 'work').rglob('log.jsonl'))
    events = list((tmp_path / 'work').rglob('events.out.*'))
    assert len(logs) == len(events) == 4  # each start of a training begins a file of events
