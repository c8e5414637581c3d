"""The cache folder, full, read-only, moved or damaged: a run says so once and learns what it learns
without it.
"""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.engine.feed.test_image_cache import SHORT, after, files, pixels
from tests.engine.runs import ended, folder_run, small
from vet.cache_folder import cannot_keep
from vet.datasets.image_folder import ImageFolder
from vet.engine.feed.image_cache import cached_images

ROOT = Path(__file__).parents[3]
PROBE = {'model.tuners': [dict(type='LinearProbe')], 'train.max_epochs': 1}


def kept(cache):
    return sorted(cache.glob('features-*.npy'))


@pytest.mark.parametrize(
    'number, reason',
    [(errno.ENOSPC, 'it is full'), (errno.EDQUOT, 'it is full'), (errno.EACCES, 'Permission denied')],
)
def test_why_nothing_can_be_kept(tmp_path, number, reason):
    told = cannot_keep(tmp_path / 'images.bin', OSError(number, os.strerror(number)))
    assert f'the cache folder {str(tmp_path)!r} cannot be used ({reason}); set VET_CACHE_DIR' in told


@pytest.mark.parametrize('option', ['train.cache_images', 'train.cache_features'])
def test_a_cache_folder_that_cannot_be_used(tmp_path, cache, jpegs, capsys, option):
    """A file stands in its place: one warning, which speaks of VET_CACHE_DIR, and the run goes on."""
    make = (
        (lambda name, **more: small(tmp_path / name, **PROBE | more))
        if option.endswith('features')
        else (lambda name, **more: folder_run(tmp_path / name, jpegs, **{'train.max_epochs': 1} | more))
    )
    rule = {'train.routes': 'rule'}  # measured routes are kept in the cache folder too
    expected = ended(make('without', **rule))
    cache.write_text('')
    capsys.readouterr()
    assert ended(make('with', **rule, **{option: True})) == expected
    err = capsys.readouterr().err
    assert (
        err.count(f'{option} has no effect') == 1
        and 'set VET_CACHE_DIR to another folder' in err
        and '--work-dir' not in err
    )


@pytest.mark.parametrize(
    'damage', ['cut', 'flipped', *(pytest.param(one, marks=pytest.mark.slow) for one in ('empty', 'header'))]
)
def test_damaged_features_are_computed_again(tmp_path, cache, damage):
    """No bit of them is trained on."""
    expected = ended(small(tmp_path / 'without', **PROBE))
    assert ended(small(tmp_path / 'first', **PROBE, **{'train.cache_features': True})) == expected
    for path in kept(cache):
        data = bytearray(path.read_bytes())
        if damage == 'flipped':
            data[len(data) // 2] ^= 16
        if damage == 'header':
            data[20] ^= 16
        path.write_bytes(data[: len(data) // 2] if damage == 'cut' else b'' if damage == 'empty' else data)
    assert ended(small(tmp_path / 'second', **PROBE, **{'train.cache_features': True})) == expected


@pytest.mark.parametrize('damage', ['cut', 'empty', 'table', 'longer'])
def test_a_damaged_file_of_images_is_made_again(jpegs, cache, damage):
    dataset = ImageFolder(jpegs, 'train')
    cached_images(dataset, SHORT)
    [path] = files(cache)
    data = bytearray(path.read_bytes())
    data[3] ^= 64 if damage == 'table' else 0
    path.write_bytes(dict(cut=data[:-1], empty=b'', longer=data + b'0').get(damage, data))
    assert pixels(cached_images(dataset, SHORT)) == after(dataset, SHORT)


def test_a_flipped_bit_of_an_image_is_told(jpegs, cache):
    kept_images = cached_images(ImageFolder(jpegs, 'train'), SHORT)
    [path] = files(cache)
    with open(path, 'r+b') as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    with pytest.raises(
        ValueError, match='is damaged at image 23; delete the file, so that its images are decoded again'
    ):
        kept_images[23]


def test_other_pixels_with_an_old_time_are_seen(tmp_path, jpegs):
    """As another archive leaves them that is unpacked over the folder: same name, size and time of change."""
    root = tmp_path / 'own'
    (root / 'train/a').mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name in ('one', 'two'):
        Image.fromarray(draw.integers(0, 256, (20, 20, 3), np.uint8)).save(root / 'train/a' / f'{name}.bmp')
        os.utime(root / 'train/a' / f'{name}.bmp', ns=(0, 0))
    dataset = ImageFolder(root, 'train')
    first = pixels(cached_images(dataset, []))
    (root / 'train/a/one.bmp').write_bytes((root / 'train/a/two.bmp').read_bytes())
    os.utime(root / 'train/a/one.bmp', ns=(0, 0))
    second = pixels(cached_images(dataset, []))
    assert second == after(dataset, []) and second != first
    other = root / 'other.bmp'
    Image.fromarray(draw.integers(0, 256, (20, 20, 3), np.uint8)).save(other)
    os.utime(other, ns=(0, 0))
    os.replace(other, root / 'train/a/one.bmp')
    assert pixels(cached_images(dataset, [])) == after(dataset, []) != second


def test_the_switch_for_cut_images_has_files_of_its_own(jpegs, cache, monkeypatch):
    dataset = ImageFolder(jpegs, 'train')
    for switch in (False, True, False):
        monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', switch)
        cached_images(dataset, SHORT)
    assert len(files(cache)) == 2


def test_another_decoder_has_a_file_of_its_own(jpegs, cache, monkeypatch):
    """vet's own code and Pillow's libraries decide on pixels too."""
    from vet.engine.feed import image_cache

    dataset = ImageFolder(jpegs, 'train')
    cached_images(dataset, SHORT)
    monkeypatch.setattr(image_cache.features, 'version', lambda name: '0')
    cached_images(dataset, SHORT)
    changed = shutil.copy(image_cache.decoding.__file__, jpegs.parent / 'image.py')
    Path(changed).write_text(Path(changed).read_text() + '\n')
    monkeypatch.setattr(image_cache.decoding, '__file__', str(changed))
    cached_images(dataset, SHORT)
    assert len(files(cache)) == 3


@pytest.mark.slow
@pytest.mark.parametrize('is_filled', [False, True])
def test_a_read_only_cache(tmp_path, is_filled):
    """On a real file system that is mounted read-only: what is there is read; without, the run goes on
    with one warning each.
    """
    unshare = ['unshare', '-m'] if os.geteuid() == 0 else ['unshare', '-Urm']
    if not shutil.which('unshare') or subprocess.run([*unshare, 'true'], capture_output=True).returncode:
        pytest.skip('this user may not mount a small file system')
    (tmp_path / 'cache').mkdir()
    options = (
        '--cfg-options train.max_epochs=1 train.cache_features=True train.transform=[] '
        '"model.tuners=[dict(type=\'LinearProbe\')]" model.backbone.lora_length=0'
    )
    train = f'{sys.executable} {ROOT}/tools/train.py {ROOT}/configs/quickstart.py --device cpu'
    script = (
        'mount -t tmpfs tmpfs cache && '
        + (f'{train} --work-dir first {options} && ' if is_filled else '')
        + f'mount -o remount,ro cache && echo NOW >&2 && {train} --work-dir second {options}'
    )
    environment = dict(os.environ, PYTHONPATH=str(ROOT), VET_CACHE_DIR=str(tmp_path / 'cache'))
    answer = subprocess.run(
        [*unshare, 'sh', '-c', script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    err = answer.stderr.partition('NOW')[2]
    assert answer.returncode == 0, answer.stderr
    assert err.count('has no effect') == (0 if is_filled else 1), err
    assert (tmp_path / 'second/summary.json').exists()
