"""vet check: what is wrong or unusual in photos, from the files and from features."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import make_blobs

from tests.fit.test_fit import COLOURS, photo
from vet.check.findings import findings, says
from vet.check.labels import judged, outliers
from vet.check.photos import Photo, Photos, read_photos
from vet.check.sameness import Seen, look
from vet.cli.vet import main


@pytest.fixture
def photos(tmp_path):
    """Split folders of three classes, with a fault of each kind."""
    folder = tmp_path / 'photos'
    for number, (name, colour) in enumerate(COLOURS.items()):
        for split, first, count in (('train', 0, 12), ('test', 50, 4)):
            for i in range(first, first + count):
                photo(folder / split / name / f'{i}.png', colour, 100 * number + i)
    red, test = folder / 'train' / 'red', folder / 'test' / 'red'
    (red / 'cut.png').write_bytes((red / '0.png').read_bytes()[:600])
    (red / 'film.mp4').write_bytes(b'x')
    shutil.copy(red / '1.png', test / 'again.png')
    shutil.copy(red / '2.png', folder / 'train' / 'blue' / 'of-red.png')
    Image.open(red / '3.png').resize((80, 80)).save(test / 'small.jpg', quality=60)
    for name in ('Bär', 'bär '.strip().upper()):
        photo(folder / 'train' / name / '0.png', (9, 9, 9), sum(map(ord, name)))
    Image.new('L', (900, 900), 60).save(red / 'huge.png')
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(red / '4.png').save(red / 'turned.jpg', exif=exif)
    return folder


def checked(folder, tmp_path):
    photos = read_photos(folder, tmp_path / 'none')
    return findings(photos, look([photo.path for photo in photos.photos]))


def test_each_fault_is_found_with_its_files(photos, tmp_path):
    found = {}
    for finding in checked(photos, tmp_path):
        found.setdefault(finding.kind, []).append(finding)
    names = {kind: [[path.rpartition('/')[2] for path in f.paths] for f in fs] for kind, fs in found.items()}
    assert names['unreadable'] == [['cut.png']]
    assert names['left out'] == [['film.mp4']]
    assert names['copy across splits'] == [['again.png', '1.png']] or names['copy across splits'] == [
        ['1.png', 'again.png']
    ]
    assert [sorted(pair) for pair in names['copy across classes']] == [['2.png', 'of-red.png']]
    assert [sorted(pair) for pair in names['near copy across splits']] == [['3.png', 'small.jpg']]
    assert names['rotation'] == [['turned.jpg']]
    assert names['size'] == [['huge.png']] and names['mode'] == [['huge.png']]
    assert "'BÄR' and 'Bär'" in found['class names'][0].text
    assert {kind for kind, fs in found.items() if fs[0].is_wrong} == {
        'unreadable',
        'copy across splits',
        'copy across classes',
        'near copy across splits',
        'class names',
    }
    assert 'red has 21 photos' in found['imbalance'][0].text


def test_photos_that_look_the_same_are_one_finding():
    names = [f'{i}.jpg' for i in range(500)]
    photos = Photos([Photo(name, 'red', 'train') for name in names])
    mark = 0x0F0F_0F0F_0F0F_0F0F
    looks = [Seen(bytes([i % 250]), mark ^ (1 << (i % 64)), (9, 9), 'RGB') for i in range(500)]
    near = [finding for finding in findings(photos, looks) if finding.kind == 'near copy']
    assert [(finding.paths, finding.text) for finding in near] == [
        (tuple(names), '500 photos look the same.')
    ]


def test_faults_come_first_and_many_of_a_kind_are_counted(photos, tmp_path):
    for i in range(9):
        (photos / 'train' / 'red' / f'cut-{i}.png').write_bytes(b'x')
    lines = list(says(checked(photos, tmp_path)))
    assert sum(line.startswith('unreadable') for line in lines) == 6
    assert any(line.startswith('unreadable: 5 more') for line in lines)
    kinds = [line.partition(':')[0] for line in lines]
    assert kinds.index('unreadable') < kinds.index('mode')


def test_photos_without_a_fault(tmp_path):
    for name, colour in COLOURS.items():
        for i in range(12):
            photo(tmp_path / 'photos' / name / f'{i}.png', colour, 1000 * colour[0] + i)
    assert checked(tmp_path / 'photos', tmp_path) == []


def test_the_command(photos, tmp_path, monkeypatch, capsys):
    def called(*options):
        monkeypatch.setattr(sys, 'argv', ['vet', 'check', str(photos), *options])
        main()
        return capsys.readouterr().out

    before = sorted((path, path.stat().st_mtime_ns) for path in photos.rglob('*'))
    kinds = {finding['kind'] for finding in json.loads(called('--format', 'json'))}
    assert {'unreadable', 'copy across classes', 'class names'} <= kinds
    with pytest.raises(SystemExit) as ended:
        called('--strict')
    assert ended.value.code == 1
    clean = tmp_path / 'clean.csv'
    called('--write', str(clean))
    kept = {row['path'].rpartition('/')[2]: row for row in csv.DictReader(open(clean))}
    assert not {'cut.png', 'of-red.png', 'film.mp4'} & set(kept)
    assert kept['again.png']['split'] == 'test'
    with pytest.raises(SystemExit):  # the disk refuses the file: the findings are told before
        called('--write', str(tmp_path / 'nowhere' / 'clean.csv'))
    assert 'copy across classes' in capsys.readouterr().out
    assert sorted((path, path.stat().st_mtime_ns) for path in photos.rglob('*')) == before


def test_a_list_of_photos_in_an_archive_is_refused(photos, tmp_path, monkeypatch):
    archive = shutil.make_archive(str(tmp_path / 'photos'), 'zip', photos)
    monkeypatch.setattr(sys, 'argv', ['vet', 'check', archive, '--write', str(tmp_path / 'clean.csv')])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and not (tmp_path / 'clean.csv').exists()


def test_the_page_shows_the_photos(photos, tmp_path, monkeypatch):
    page = tmp_path / 'check.html'
    monkeypatch.setattr(sys, 'argv', ['vet', 'check', str(photos), '--page', str(page)])
    main()
    text = page.read_text()
    assert text.index('Copy across classes') < text.index('Rotation')  # faults come first
    assert 'of-red.png">' in text and 'data:image/jpeg;base64,' in text and 'no image:' not in text
    assert 'src="http' not in text and '<script' not in text


def test_photos_like_no_others_are_outliers():
    features, _ = make_blobs(300, 32, centers=6, cluster_std=1.0, random_state=0)
    assert outliers(features) == []
    features[[7, 90]] = np.random.default_rng(0).standard_normal((2, 32)) * 30
    assert set(outliers(features)) == {7, 90}
    assert outliers(features[:8]) == []  # too few to say


@pytest.mark.parametrize('classes', [2, 8])
def test_wrong_labels_are_suspect_and_right_ones_are_not(classes):
    features, right = make_blobs(400, 16, centers=classes, cluster_std=1.5, random_state=0)
    labels, wrong = right.copy(), np.arange(0, 400, 20)
    labels[wrong] = (labels[wrong] + 1) % classes
    found = judged(features, labels)
    assert set(found.suspects(labels)) == set(wrong)
    assert (found.best_N[wrong] == right[wrong]).all()
    assert judged(features, right).suspects(right) == []


def test_hard_photos_are_not_suspect():
    """Classes that lie on one another: many photos are judged wrongly, and no label is wrong."""
    features, right = make_blobs(400, 4, centers=3, cluster_std=6, random_state=0)
    found = judged(features, right)
    assert (found.best_N != right).mean() > 0.05
    assert len(found.suspects(right)) <= 2
