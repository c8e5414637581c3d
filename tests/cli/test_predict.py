"""vet predict for real folders: forms of output, bad files, choices of files, and folders of answers."""

import csv
import io
import json
import os
import resource
import threading

import pytest
from PIL import Image

from vet.cli.sort_images import SortInto
from vet.errors import UserError
from vet.lock import FileLock


@pytest.fixture
def photos(trainer, tmp_path):
    """Four digits in three folders, and a broken file."""
    for number, name in enumerate(['a.png', 'b.jpg', 'deep/a.png', 'deep/er/c.png']):
        path = tmp_path / 'photos' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        trainer.data['test'][number][0].save(path)
    (tmp_path / 'photos' / 'broken.png').write_bytes(b'\x89PNG')
    return tmp_path / 'photos'


@pytest.fixture
def predict(command, trainer):
    def call(*arguments):
        return command('predict', trainer.folder.path, *arguments, '--device', 'cpu')

    return call


READ = {
    'json': json.loads,
    'jsonl': lambda text: list(map(json.loads, text.splitlines())),
    'csv': lambda text: list(csv.DictReader(io.StringIO(text))),
}


@pytest.mark.parametrize('form', READ)
def test_a_bad_file_gets_a_row_and_the_exit_code_1(predict, photos, form):
    code, out, err = predict(photos, '--format', form)
    rows = READ[form](out)
    assert code == 1 and '1 of 5 images could not be read' in err and 'broken.png' in err
    assert '5 of 5 images' in err  # progress
    assert [os.path.relpath(row['image'], photos) for row in rows] == [
        'a.png',
        'b.jpg',
        'broken.png',
        'deep/a.png',
        'deep/er/c.png',
    ]
    assert 'cannot read' in rows[2]['error'] and not any(row.get('error') for row in rows if row != rows[2])
    whole = predict(photos, '--format', form, '--out', 'answers.txt')
    assert whole[:2] == (1, '') and open('answers.txt').read() == out


def test_a_csv_has_one_row_for_each_image(predict, photos):
    (photos / 'broken.png').unlink()
    _, one, _ = predict(photos, '--format', 'csv')
    _, best, _ = predict(photos, '--format', 'csv', '--topk', 2)
    first, two = READ['csv'](one), READ['csv'](best)
    assert list(first[0]) == ['image', 'label', 'score', 'error'] and len(first) == len(two) == 4
    assert [row['label'] for row in first] == [row['label'].split('|')[0] for row in two]


def test_the_table_names_the_error(predict, photos):
    code, out, _ = predict(photos)
    line = next(line for line in out.splitlines() if 'broken.png' in line)
    assert code == 1 and 'not read: ' in line and 'cannot read' in line


def test_the_table_shows_the_whole_word_unsure(predict, photos):
    _, out, _ = predict(photos, '--threshold', '1')
    assert [line.split()[1] for line in out.splitlines() if 'a.png' in line] == ['unsure', 'unsure']


def test_stop_ends_at_the_bad_file_and_leaves_no_file(predict, photos):
    code, out, err = predict(photos, '--on-error', 'stop', '--format', 'jsonl')
    assert code == 2 and len(out.splitlines()) == 2 and 'broken.png' in err and 'Traceback' not in err
    before = set(os.listdir())
    assert predict(photos, '--on-error', 'stop', '--out', 'answers.csv', '--format', 'csv')[0] == 2
    assert set(os.listdir()) == before


@pytest.mark.parametrize(
    'options, names',
    [
        (['--no-recursive'], ['a.png', 'b.jpg', 'broken.png']),
        (['--recursive', '--glob', '*.jpg'], ['b.jpg']),
        (['--glob', 'deep/*'], ['deep/a.png']),
        (['--glob', '**/[ac].png'], ['a.png', 'deep/a.png', 'deep/er/c.png']),
    ],
)
def test_a_choice_of_files(predict, photos, options, names):
    rows = READ['json'](predict(photos, '--format', 'json', *options)[1])
    assert [os.path.relpath(row['image'], photos) for row in rows] == names


def test_images_are_copied_into_folders_of_their_answers(predict, photos, tmp_path):
    answers = {row['image']: row for row in READ['json'](predict(photos, '--format', 'json')[1])}
    for _ in range(2):  # the second call finds its copies
        assert predict(photos, '--sort-into', 'sorted')[0] == 1
    copies = sorted((tmp_path / 'sorted').rglob('*.*'))
    assert len(copies) == 4
    labels = sorted(row['labels'][0] for row in answers.values() if 'labels' in row)
    assert sorted(path.parent.name for path in copies) == labels and len(list(photos.rglob('*.*'))) == 5
    predict(photos, '--sort-into', 'doubtful', '--threshold', '1')
    assert sorted(os.listdir('doubtful')) == ['unsure']
    assert sorted(os.listdir('doubtful/unsure')) == ['a-2.png', 'a.png', 'b.jpg', 'c.png']


@pytest.mark.parametrize(
    'options, words',
    [
        (['--out', 'none/answers.csv'], 'its folder does not exist'),
        (['--out', '.'], 'which is a folder'),
        (['--backbone', 'a.pth'], 'the backbone DigitsViT reads no file of weights: leave backbone out'),
        (['--sort-into', 'photos/sorted'], 'lies in'),
        (['--glob', '*.gif'], "fits --no-recursive or --glob '*.gif'"),
        (['--threshold', '1.5'], 'threshold must be a number from 0 to 1'),
        (['--workers', '-1'], 'workers must be at least 0'),
        (['--topk', '0'], 'topk must be at least 1'),
    ],
)
def test_refusals(fails, trainer, photos, options, words):
    fails(words, of=['predict', trainer.folder.path, photos, *options, '--device', 'cpu'])


def test_two_processes_sort_one_after_the_other(tmp_path):
    """A file that another process is just copying would count as another image."""
    (tmp_path / 'a.png').write_bytes(b'image')
    sort = SortInto(str(tmp_path / 'sorted'), [], [])
    lock = FileLock(tmp_path / 'sorted')
    lock.acquire()
    waiting = threading.Thread(target=sort.add, args=(str(tmp_path / 'a.png'), dict(labels=['cat'])))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive() and not list((tmp_path / 'sorted').iterdir())
    lock.release()
    waiting.join()
    assert os.listdir(tmp_path / 'sorted' / 'cat') == ['a.png']


def test_a_copy_that_the_disk_cuts_is_removed(tmp_path):
    """The next call would take the cut file for another image."""
    image = tmp_path / 'a.png'
    image.write_bytes(bytes(100_000))
    sort = SortInto(str(tmp_path / 'sorted'), [str(image)], [str(image)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(UserError, match='a.png'):
            sort.add(str(image), dict(labels=['cat']))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / 'sorted' / 'cat').iterdir())
    for _ in range(2):
        sort.add(str(image), dict(labels=['cat']))
    assert [path.stat().st_size for path in (tmp_path / 'sorted' / 'cat').iterdir()] == [100_000]


def test_an_output_that_is_an_input_is_refused(fails, trainer, photos, tmp_path):
    """Or photos would be written over."""
    model, photo = trainer.folder.output, photos / 'a.png'
    table = tmp_path / 'table.csv'
    table.write_text('path,label\nphotos/a.png,0\nphotos/b.jpg,1\n')
    before = [path.read_bytes() for path in (photo, table, model / 'tuner.safetensors')]
    fails("--out is '", 'a file that this command reads', of=['predict', model, photos, '--out', photo])
    fails('could be written over', of=['explain', model, photo, '--out', photos, '--device', 'cpu'])
    for option in ('--write', '--page'):
        fails(f'{option} is', of=['check', table, option, table])
    fails('the output is', of=['export', model, model / 'tuner.safetensors'])
    assert [path.read_bytes() for path in (photo, table, model / 'tuner.safetensors')] == before


def test_a_label_cannot_lead_out_of_the_folder(tmp_path):
    image = tmp_path / 'x.png'
    Image.new('RGB', (4, 4)).save(image)
    sort = SortInto(str(tmp_path / 'sorted'), [str(image)], [str(image)])
    for label in ('../../up', '..', '/root', '.hidden', 'a/b', 'a%2Fb', '\x00', ''):
        sort.add(str(image), dict(labels=[label], scores=[1.0]))
    folders = list((tmp_path / 'sorted').iterdir())
    assert len(folders) == 8 and all((folder / 'x.png').is_file() for folder in folders)
    assert sorted(os.listdir(tmp_path)) == ['sorted', 'x.png']
