"""vet fit: from photos to a model, a test accuracy and a config that `vet train` runs."""

import csv
import json
import math
import shlex
import shutil
import signal
import sys
import zipfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from vet import build_trainer, pipeline
from vet.check.photos import Photo, Photos, read_photos
from vet.check.sameness import difference_hash, groups_of, look, near_pairs
from vet.cli.vet import main
from vet.engine.learner import Learner
from vet.errors import UserError
from vet.fit.choices import backbone_entry, plan
from vet.fit.fitting import Options, fit
from vet.fit.prepared import Prepared
from vet.fit.run_folder import run_folder
from vet.fit.split import divide

TRIAL = Options(backbone='trial', minutes=0.01, device='cpu')
COLOURS = dict(red=(220, 40, 40), green=(40, 200, 60), blue=(50, 60, 220))


def photo(path, colour, seed):
    """A photo of coarse noise in a colour: two seeds do not look the same."""
    draw = np.random.default_rng(seed)
    noise = draw.integers(-40, 40, (12, 12, 1)) + np.array(colour)
    pixels = np.clip(noise, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Three classes of 12 photos, with a broken file, a file that Pillow does not read, and a copy."""
    folder = tmp_path_factory.mktemp('given') / 'photos'
    for number, (name, colour) in enumerate(COLOURS.items()):
        for i in range(12):
            photo(folder / name / f'{i}.png', colour, 100 * number + i)
    (folder / 'red' / 'cut.png').write_bytes((folder / 'red' / '0.png').read_bytes()[:600])
    (folder / 'red' / 'phone.nef').write_bytes(b'x')
    shutil.copy(folder / 'blue' / '1.png', folder / 'blue' / 'again.png')
    return folder


@pytest.fixture(scope='module')
def fitted(photos, tmp_path_factory):
    run = tmp_path_factory.mktemp('run') / 'fit'
    with pytest.MonkeyPatch.context() as patch:  # as many epochs on a busy machine as on a quiet machine
        patch.setattr('vet.fit.choices._seconds_of_an_image', lambda *_: 2e-4)
        return fit(photos, run, TRIAL)


def test_it_ends_with_an_honest_sentence(fitted):
    assert fitted.tested.images == 6 and fitted.tested.majority == 2
    n, p, z = fitted.tested.images, fitted.accuracy, 1.959964
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)  # Wilson 1927
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert fitted.interval == pytest.approx((centre - half, centre + half), abs=1e-6)
    assert fitted.accuracy > 0.5
    assert 'of 6 test images are right' in fitted.says() and 'linear probe' in fitted.says()


def test_the_images_to_choose_by_choose_between_the_tuned_model_and_the_probe(fitted):
    assert set(fitted.validation) == {'tuned', 'probe'}
    for name, accuracy in fitted.validation.items():
        summary = json.loads((fitted.folder / name / 'summary.json').read_text())
        assert accuracy == summary['validation']
    weak = replace(fitted, validation=dict(tuned=0.25, probe=0.5))
    assert weak.model == fitted.folder / 'probe'
    assert weak.says().endswith(
        'On the images to choose by, the linear probe is better (50.0 % against 25.0 %). '
        'Use probe/, or give more --minutes.'
    )
    for validation in (dict(tuned=0.5, probe=0.5), dict(tuned=0.5)):
        equal = replace(fitted, validation=validation)
        assert equal.model == fitted.folder / 'tuned' and 'Use probe/' not in equal.says()


def test_the_time_of_a_step_is_that_of_the_fastest_step(monkeypatch):
    times = iter([0, 9, 10, 18, 20, 21, 30, 37])  # steps of 9, 8, 1 and 7 s, of 8 images each
    monkeypatch.setattr('vet.fit.choices.time.perf_counter', lambda: next(times))
    chosen = plan(dict(type='DigitsViT'), [dict(type='LoRA', rank=2)], ['a', 'b'], 80, 5.0, 'cpu')
    assert chosen.seconds == 10 and chosen.epochs == 18  # of 300 s, 0.6 is for the steps


def test_the_table_has_each_photo_once_and_no_broken_one(fitted):
    rows = list(csv.DictReader(open(fitted.folder / 'photos.csv')))
    assert len(rows) == 36 == len({row['path'] for row in rows})
    assert not any('cut' in row['path'] or 'nef' in row['path'] for row in rows)
    counts = Counter((row['split'], row['label']) for row in rows)
    assert all(counts['test', name] == 2 and counts['val', name] == 1 for name in COLOURS)


@pytest.mark.slow
def test_its_config_gives_the_same_model(fitted, tmp_path):
    trainer = build_trainer(model=fitted.folder / 'config.py', work_dir=tmp_path / 'again', device='cpu')
    summary = trainer.train()
    before = json.loads((fitted.folder / 'tuned' / 'summary.json').read_text())
    assert summary['accuracy'] == before['accuracy'] == fitted.accuracy
    files = [
        folder / 'output' / 'tuner.safetensors' for folder in (tmp_path / 'again', fitted.folder / 'tuned')
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_model_answers_with_the_folders_names(fitted, photos):
    answer = pipeline(fitted.folder / 'tuned' / 'output', device='cpu')(photos / 'green' / '3.png')
    assert set(answer['labels']) == set(COLOURS)


def test_the_command_says_what_it_found(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ['--backbone', 'trial', '--minutes', '0.001', '--device', 'cpu', '--group-by', r'/(\w+)\.png']
    monkeypatch.setattr(sys, 'argv', ['vet', 'fit', str(photos), *options])
    main()
    shown = capsys.readouterr()
    assert '36 images in 3 classes. 3 files left out: ' in shown.err
    assert '1 .nef, which the installed Pillow does not read (such as phone.nef)' in shown.err
    assert '1 broken (such as cut.png)' in shown.err and '1 copies of other photos' in shown.err
    [run] = (tmp_path / 'runs' / 'photos').iterdir()
    assert 'So few epochs make a weak model: give more --minutes.' in shown.err
    tuned, probe = (
        json.loads((run / name / 'summary.json').read_text())['validation'] for name in ('tuned', 'probe')
    )
    model = 'probe' if probe > tuned else 'tuned'
    assert f'vet predict {run.relative_to(tmp_path) / model} NEW_PHOTOS' in shown.out


def test_the_run_has_the_page_of_vet_check(fitted):
    page = (fitted.folder / 'check.html').read_text()
    assert 'Unreadable: 1' in page and 'cut.png' in page and page.count('<img') == 2  # the copy and the photo


@pytest.mark.slow
def test_with_folds_every_photo_is_tested_once(photos, tmp_path):
    run = tmp_path / 'run'
    result = fit(photos, run, replace(TRIAL, folds=3))
    tables = [list(csv.DictReader(open(run / f'fold-{fold}' / 'photos.csv'))) for fold in (1, 2, 3)]
    tested = [row['path'] for table in tables for row in table if row['split'] == 'test']
    assert len(tested) == len(set(tested)) == result.tested.images == 36
    answers = [list(csv.DictReader(open(run / f'fold-{fold}/tuned/predictions.csv'))) for fold in (1, 2, 3)]
    right = [sum(row['label'] == row['answer'] for row in rows) for rows in answers]
    assert sum(right) == result.tested.right and result.folds == pytest.approx([n / 12 for n in right])
    last = Counter(row['split'] for row in csv.DictReader(open(run / 'photos.csv')))
    assert set(last) == {'train', 'val'} and last.total() == 36
    assert 'Each of 3 trainings' in result.says() and 'no photo tests that model' in result.says()
    assert (run / 'tuned' / 'output' / 'tuner.safetensors').exists() and (run / 'config.py').exists()


def test_folds_keep_groups_whole_and_every_class_in_training():
    draw = np.random.default_rng(0)
    photos = [Photo(f'{i}.png', 'abc'[i % 3]) for i in range(90)]
    groups = [i - i % 3 + i % 3 if draw.random() < 0.5 else i % 30 for i in range(90)]
    folds = Prepared(Photos(photos), groups).folds(5, 0.2, 0)
    assert folds == Prepared(Photos(photos), groups).folds(5, 0.2, 0)
    assert [sum(fold[i] == 'test' for fold in folds) for i in range(90)] == [1] * 90
    for fold in folds:
        assert all(len({fold[i] for i in range(90) if groups[i] == group}) == 1 for group in groups)
        assert {'a', 'b', 'c'} == {p.label for p, split in zip(photos, fold) if split == 'train'}
        assert {'a', 'b', 'c'} == {p.label for p, split in zip(photos, fold) if split == 'val'}


@pytest.mark.parametrize('beside', [False, True])
def test_a_file_of_weights_tells_its_network(tmp_path, beside):
    name = 'test_vit2.r160_in1k'  # also begins with the name test_vit
    network = timm.create_model(name.partition('.')[0])
    file = tmp_path / ('model.safetensors' if beside else f'{name}.safetensors')
    save_file(network.state_dict(), file)
    if beside:
        (tmp_path / 'config.json').write_text('{"architecture": "test_vit2"}')
    entry = backbone_entry(str(file), None)
    assert entry == dict(type='timm', name='test_vit2', checkpoint=str(file))


def test_a_file_that_tells_no_network(tmp_path):
    (tmp_path / 'model.safetensors').write_bytes(b'x')
    with pytest.raises(
        UserError, match='nothing tells the network of the weights. Give --backbone NAME --ch'
    ):
        backbone_entry(str(tmp_path / 'model.safetensors'), None)


# Reading ----------------------------------------------------------------------------------------------------


def test_archives_tables_and_split_folders_give_the_same_photos(photos, tmp_path):
    expected = read_photos(photos, tmp_path / 'none').counts
    archive = tmp_path / 'photos.zip'
    with zipfile.ZipFile(archive, 'w') as file:
        for path in photos.rglob('*'):
            file.write(path, path.relative_to(photos.parent))
    assert read_photos(archive, tmp_path / 'unpacked').counts == expected
    table = tmp_path / 'photos.csv'
    found = [path for path in photos.rglob('*.png')]
    table.write_text('file_name,label\n' + '\n'.join(f'{path},{path.parent.name}' for path in found))
    assert read_photos(table, tmp_path / 'none').counts == expected
    table.write_text(
        'path,label\n'
        + '\n'.join(f'photos/{path.parent.name}/{path.name},{path.parent.name}' for path in found)
    )
    with zipfile.ZipFile(tmp_path / 'with_table.zip', 'w') as file:
        for path in found:
            file.write(path, path.relative_to(photos.parent))
        file.write(table, 'labels.csv')
    assert read_photos(tmp_path / 'with_table.zip', tmp_path / 'again').counts == expected
    for name in ('Training', 'valid', 'TEST'):
        shutil.copytree(photos, tmp_path / 'divided' / name)
    divided = read_photos(tmp_path / 'divided', tmp_path / 'none').photos
    assert Counter(photo.split for photo in divided) == dict.fromkeys(('train', 'val', 'test'), len(found))


@pytest.mark.slow
def test_class_folders_may_have_numbers_as_names(tmp_path):
    for name, colour in zip(('0', '7', '12'), COLOURS.values()):
        for i in range(4):
            photo(tmp_path / 'photos' / name / f'{i}.png', colour, int(name) * 10 + i)
    run = fit(tmp_path / 'photos', tmp_path / 'run', TRIAL).folder
    answer = pipeline(run / 'tuned' / 'output', device='cpu')(tmp_path / 'photos' / '7' / '0.png')
    assert set(answer['labels']) == {'0', '7', '12'}


REFUSED = {
    'one class': (dict(a=5), 'has one class'),
    'a folder of class folders in a folder': (
        {'2024/a': 3, '2024/b': 3},
        "one class, '2024'.*give '.*photos/2024'",
    ),
    'two photos of a class': (dict(a=5, b=2), "'a' 5, 'b' 2. At least two classes need 3 photos"),
    'no photos': ({}, 'has no photos'),
    'loose photos': ({'.': 3}, 'has 3 images, but no class folders'),
    'other names': (dict(train=3, test=3, rest=3), 'split folders test, train, and other folders: rest'),
    'one other name': (
        {'train/a': 3, 'train/b': 3, 'holdout/a': 3, 'holdout/b': 3},
        'split folders train, and other folders: holdout',
    ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_photos_from_which_nothing_can_be_learned(tmp_path, name):
    counts, words = REFUSED[name]
    (tmp_path / 'photos').mkdir()
    for folder, count in counts.items():
        for i in range(count):
            photo(tmp_path / 'photos' / folder / f'{i}.png', (9, 9, 9), sum(map(ord, folder)) * 10 + i)
    with pytest.raises(UserError, match=words):
        fit(tmp_path / 'photos', tmp_path / 'run', TRIAL)
    assert not (tmp_path / 'run').exists()


def test_too_many_classes_are_refused_before_any_photo_is_read(photos, tmp_path, monkeypatch):
    monkeypatch.setattr('vet.check.photos.MOST_CLASSES', 2)
    monkeypatch.setattr('vet.check.sameness.look', None)
    with pytest.raises(UserError, match='has 3 classes.* vet takes at most 2 classes.*call vet train'):
        fit(photos, tmp_path / 'run', TRIAL)


def test_the_same_photos_in_two_classes(tmp_path):
    for i in range(5):
        for name in ('cat', 'dog'):
            photo(tmp_path / 'photos' / name / f'{i}.png', (9, 9, 9), i)
        photo(tmp_path / 'photos' / 'dog' / f'more-{i}.png', (90, 9, 9), 50 + i)
    with pytest.raises(UserError, match="10 copies with different classes .*'dog' 5. At least two classes"):
        fit(tmp_path / 'photos', tmp_path / 'run', TRIAL)


def test_videos_a_file_and_a_run_within_the_photos(photos, tmp_path):
    (tmp_path / 'videos').mkdir()
    (tmp_path / 'videos' / 'a.mp4').write_bytes(b'x')
    (tmp_path / 'a.txt').write_text('x')
    for source, run, words in (
        (tmp_path / 'videos', tmp_path / 'run', "has 1 videos, such as '.*a.mp4'"),
        (tmp_path / 'a.txt', tmp_path / 'run', 'is a file. Give the folder'),
        (tmp_path / 'nothing', tmp_path / 'run', 'there is nothing at'),
        (photos, photos / 'runs', 'a folder of the photos'),
        (photos, tmp_path, 'exists. Give --out'),
    ):
        with pytest.raises(UserError, match=words):
            fit(source, run, TRIAL)


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(holdout=2.0), '--holdout is 2'),
        (dict(minutes=0.0), '--minutes is 0'),
        (dict(folds=1), '--folds is 1; give 2 to 20'),
        (dict(folds=19), '--folds is 19, but the smallest class has 12 photos'),
        (dict(tuner='Lora'), "Did you mean 'LoRA'"),
        (dict(backbone='vit_smal_patch16_224'), "Did you mean 'vit_small_patch16_224'"),
        (dict(backbone=None, checkpoint='a.pth'), '--checkpoint needs --backbone NAME'),
        (dict(checkpoint='a.pth'), '--backbone trial ships with its weights. Leave --checkpoint out'),
        (dict(group_by='zz'), 'fits no part of'),
        (dict(group_by='(('), 'not a regular expression'),
        (dict(strict=True), '(?s)1 files cannot be read.*cut.png'),
    ],
)
def test_options_that_do_not_fit(photos, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        fit(photos, tmp_path / 'run', Options(**dict(dict(backbone='trial', device='cpu'), **options)))
    assert not (tmp_path / 'run').exists()


# Dividing ---------------------------------------------------------------------------------------------------


def test_photos_that_look_the_same_are_found(photos, tmp_path):
    """A smaller copy in another JPEG quality is near. Other photos are not."""
    paths = sorted((photos / 'green').glob('*.png'))
    small = tmp_path / 'small.jpg'
    Image.open(paths[4]).resize((86, 86)).save(small, quality=60)
    marks = [seen.mark for seen in look([*map(str, paths), str(small)])]
    assert near_pairs(marks) == [(4, len(paths))]


def test_many_photos_that_look_the_same_are_joined_once():
    """Frames of a film. Blocks of rows, equal marks and chains are one group; flat photos are none."""
    usual, other = 0x0F0F_0F0F_0F0F_0F0F, 0x3333_3333_3333_3333
    marks = [usual ^ (1 << (i % 64)) for i in range(3000)]
    marks[7] = marks[2000] = 1  # flat
    marks += [other, other ^ 0b1111, other ^ 0b1111_1111, other ^ 0b1111_1111_1111_1]
    joined = [(0, i) for i in range(1, 3000) if i not in (7, 2000)]
    assert near_pairs(marks) == [*joined, (3000, 3001), (3000, 3002)]


def test_a_mark_is_64_comparisons_of_neighbours():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9), dtype=np.uint8))
    pixels = np.asarray(image).astype(int)
    bits = ''.join('01'[int(pixels[y, x + 1] > pixels[y, x])] for y in range(8) for x in range(8))
    assert difference_hash(image) == int(bits, 2)


def test_groups_join_chains():
    assert groups_of(6, [(4, 5), (0, 2), (2, 4)]) == [0, 1, 0, 3, 0, 0]


def test_groups_stay_whole_and_every_class_is_everywhere():
    draw = np.random.default_rng(1)
    labels = [str(label) for label in draw.integers(0, 5, 300)]
    first = {label: labels.index(label) for label in labels}
    groups = [first[label] if draw.random() < 0.2 else item for item, label in enumerate(labels)]
    splits = divide(labels, groups, 0.2, 0)
    assert splits == divide(labels, groups, 0.2, 0) != divide(labels, groups, 0.2, 1)
    assert all(len({splits[i] for i in range(300) if groups[i] == group}) == 1 for group in groups)
    counts = Counter(zip(labels, splits))
    assert all(counts[label, split] for label in first for split in ('train', 'val', 'test'))
    assert Counter(splits)['test'] == pytest.approx(60, abs=5)


def test_a_test_folder_stays_and_only_what_is_missing_is_taken_from_train():
    labels, given = ['a', 'b'] * 20, ['test'] * 10 + ['train'] * 30
    splits = divide(labels, list(range(40)), 0.2, 0, given)
    assert splits[:10] == ['test'] * 10 and 'test' not in splits[10:]
    assert Counter(splits[10:])['val'] == 4


def _divided(rows):
    """rows: (label, group, split) of each photo."""
    photos = [Photo(f'{i}.png', label, split) for i, (label, _, split) in enumerate(rows)]
    return Prepared(Photos(photos), [group for _, group, _ in rows])


@pytest.mark.parametrize(
    'rows, words',
    [
        ([('a', i, 'train') for i in range(9)] + [('b', 9, 'test')], "class 'b' has no photo to learn from"),
        ([(label, f'{label}{split}', split) for label in 'ab' for split in ('train', 'val')], 'to report on'),
        ([(label, f'{label}{split}', split) for label in 'ab' for split in ('train', 'test')], 'to choose'),
    ],
)
def test_splits_from_which_nothing_can_be_learned(rows, words):
    with pytest.raises(UserError, match=words):
        _divided(rows).divided(0.2, 0)


def test_groups_that_the_user_has_put_apart_are_told():
    prepared = _divided([('a', 0, 'train'), ('a', 0, 'test'), ('b', 1, 'train'), ('b', 2, 'test')])
    told = (
        'Some photos for the test look like photos of another part, or --group-by puts them with such photos '
        '(number of photos: 1). The result of the test will be too good.'
    )
    assert prepared.says_what_is_apart(prepared.given) == told
    assert 'for the validation' in prepared.says_what_is_apart(['train', 'val', 'train', 'train'])
    assert prepared.says_what_is_apart(['train'] * 4) == 'Photos that look the same are in one part.'


def test_classes_without_test_photos_are_told(capsys):
    rows = [(label, f'{label}{i}', None) for label in 'ab' for i in range(5)]
    together = [('c', 'c', None)] * 5  # --group-by keeps all photos of the class together
    splits = _divided(rows + together).divided(0.2, 0)
    assert splits[-5:] == ['train'] * 5
    assert 'No photo is left to report on in these classes: c.' in capsys.readouterr().err


def test_photos_that_are_refused_leave_no_folder_and_name_no_page(tmp_path, capsys):
    for name, colour in COLOURS.items():
        photo(tmp_path / 'photos' / name / '1.png', colour, 1)
        shutil.copy(tmp_path / 'photos' / name / '1.png', tmp_path / 'photos' / name / '2.png')
    with pytest.raises(UserError, match='At least two classes need 3 photos'):
        fit(tmp_path / 'photos', tmp_path / 'run', Options(backbone='trial'))
    assert not (tmp_path / 'run').exists() and 'check.html' not in capsys.readouterr().err


def test_a_second_fit_in_one_folder_is_refused_and_takes_nothing(photos, tmp_path):
    """As long as the first fit reads photos, its folder looks empty."""
    run = tmp_path / 'run'
    with run_folder(run):
        with pytest.raises(UserError, match=r"another process writes in '.*run' now. Wait until it ends"):
            fit(photos, run, TRIAL)
        assert (run / '.lock').exists()
    (run / 'photos.csv').touch()
    with pytest.raises(UserError, match=r"run' exists. Give --out the path of a new folder"), run_folder(run):
        pass


def stopping_in(folder):
    """`Learner._accumulate`, with a signal in the first step of the training in `folder`."""
    accumulate = Learner._accumulate

    def stopping(*args):
        if folder.exists():
            signal.raise_signal(signal.SIGINT)
        return accumulate(*args)

    return stopping


@pytest.mark.slow
def test_a_fit_that_a_signal_ends_says_how_to_go_on(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('vet.fit.choices._seconds_of_an_image', lambda *_: 2e-4)
    for stage, words in (
        ('probe', 'To go on, begin again with a new --out'),
        ('tuned', 'To go on: vet train '),
    ):
        shutil.rmtree(tmp_path / 'run', ignore_errors=True)
        options = ['--out', str(tmp_path / 'run'), '--backbone', 'trial', '--minutes', '0.01', '--device']
        monkeypatch.setattr(sys, 'argv', ['vet', 'fit', str(photos), *options, 'cpu'])
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(Learner, '_accumulate', stopping_in(tmp_path / 'run' / stage))
            main()
        assert ended.value.code == 130
        told = capsys.readouterr().err
        assert words in told and 'build_trainer' not in told
    command = next(line for line in told.splitlines() if words in line).partition('To go on: ')[2]
    monkeypatch.setattr(sys, 'argv', shlex.split(command))
    main()
    assert 'test accuracy after' in capsys.readouterr().out


def test_what_to_type_next_can_be_pasted(fitted, monkeypatch, capsys):
    given = replace(fitted, folder=fitted.folder / "it's <b>")
    monkeypatch.setattr('vet.fit.fitting.fit', lambda *_: given)
    monkeypatch.setattr(sys, 'argv', ['vet', 'fit', 'photos'])
    main()
    line = next(line for line in capsys.readouterr().out.splitlines() if 'vet train' in line)
    assert shlex.split(line) == ['vet', 'train', str(given.folder / 'config.py')]
