"""Archives of strangers: only plain files inside the folder come out; what has another hash is not
unpacked at all.
"""

import hashlib
import io
import os
import stat
import tarfile
import zipfile

import pytest
import torchvision.datasets
from torchvision.datasets.utils import extract_archive

from vet.datasets.archives import (
    Download,
    fetch,
    is_inside,
    only_plain_by_default,
    provide,
    unpack,
    unpack_whole,
)
from vet.datasets.cub200 import CUB200
from vet.datasets.flowers102 import Flowers102
from vet.datasets.published import PublishedDataset, torchvision_bounds
from vet.datasets.torchvision import TorchvisionDataset
from vet.errors import DataError
from vet.registry import DATASETS


def member(name, kind=tarfile.REGTYPE, link='', size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


HOSTILE = dict(
    parent=member('../outside.txt'),
    deep=member('images/../../outside.txt'),
    absolute=member('/tmp/vet-outside.txt'),
    hidden=member('./a/./../../outside.txt'),
    backslash=member('..\\outside.txt'),
    drive=member('C:\\outside.txt'),
    link=member('link', tarfile.SYMTYPE, '../outside.txt'),
    inner_link=member('link', tarfile.SYMTYPE, 'a.txt'),
    absolute_link=member('link', tarfile.SYMTYPE, '/etc/passwd'),
    hard=member('hard', tarfile.LNKTYPE, '../../etc/passwd'),
    inner_hard=member('hard', tarfile.LNKTYPE, 'a.txt'),
    folder_link=member('folder', tarfile.SYMTYPE, '/tmp'),
    character=member('null', tarfile.CHRTYPE),
    block=member('disk', tarfile.BLKTYPE),
    pipe=member('pipe', tarfile.FIFOTYPE),
    parent_folder=member('../folder', tarfile.DIRTYPE),
    absolute_folder=member('/tmp/vet-folder', tarfile.DIRTYPE),
)


def make_tar(path, *members, mode='w'):
    with tarfile.open(path, mode) as tar:
        info = member('a.txt', size=5)
        tar.addfile(info, io.BytesIO(b'plain'))
        for each in members:
            tar.addfile(each, io.BytesIO(bytes(each.size)))
    return path


def make_zip(path, name, mode=0):
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('a.txt', 'plain')
        info = zipfile.ZipInfo(name)
        info.filename = name  # ZipInfo itself rewrites separators on some systems
        info.external_attr = mode << 16
        file.writestr(info, '/etc/passwd')
    return path


@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_tar_is_refused_and_named(tmp_path, name):
    folder = tmp_path / 'data'
    archive = make_tar(tmp_path / 'a.tar', HOSTILE[name])
    with pytest.raises(DataError, match='the archive holds .*(outside its folder|link or a device)'):
        unpack(archive, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.tar', 'data']
    assert all(not path.is_symlink() and path.name == 'a.txt' for path in folder.rglob('*'))


@pytest.mark.parametrize(
    'name, mode',
    [
        ('../outside.txt', 0),
        ('/tmp/vet-outside.txt', 0),
        ('a/../../outside.txt', 0),
        ('..\\outside.txt', 0),
        ('C:/outside.txt', 0),
        ('link', stat.S_IFLNK | 0o777),
        ('pipe', stat.S_IFIFO | 0o644),
        ('device', stat.S_IFCHR | 0o644),
    ],
)
def test_a_hostile_zip_is_refused_whole(tmp_path, name, mode):
    folder = tmp_path / 'data'
    with pytest.raises(DataError, match='the archive holds .*(outside its folder|link or a device)'):
        unpack(make_zip(tmp_path / 'a.zip', name, mode), folder)
    assert not folder.exists()


@pytest.mark.parametrize('mode', ['w', 'w:gz', 'w:bz2', 'w:xz'])
def test_plain_files_and_folders_come_out(tmp_path, mode):
    unpack(
        make_tar(
            tmp_path / 'a.tar', member('images', tarfile.DIRTYPE), member('./images/b.bin', size=3), mode=mode
        ),
        tmp_path / 'data',
    )
    assert (tmp_path / 'data/a.txt').read_text() == 'plain' and (
        tmp_path / 'data/images/b.bin'
    ).read_bytes() == bytes(3)
    unpack(make_zip(tmp_path / 'a.zip', 'images/c.txt', stat.S_IFREG | 0o4755), tmp_path / 'zip')
    assert (tmp_path / 'zip/images/c.txt').stat().st_mode & 0o7000 == 0


def test_what_is_unpacked_whole_comes_into_a_new_folder_and_leaves_other_files(tmp_path):
    archive = make_tar(tmp_path / 'a.tar', member('images', tarfile.DIRTYPE), member('images/b.bin', size=3))
    for _ in range(2):
        unpack_whole(archive, tmp_path / 'new/data')
        (tmp_path / 'new/data/images/other.bin').touch()
    assert sorted(path.name for path in (tmp_path / 'new/data').iterdir()) == ['a.txt', 'images']
    assert sorted(path.name for path in (tmp_path / 'new/data/images').iterdir()) == ['b.bin', 'other.bin']


def test_what_grows_out_of_proportion_is_refused(tmp_path):
    bomb = make_tar(tmp_path / 'bomb.tgz', member('zeros.bin', size=2**25), mode='w:gz')
    with pytest.raises(DataError, match='more than 200 times its own bytes'):
        unpack(bomb, tmp_path / 'data')
    with zipfile.ZipFile(tmp_path / 'bomb.zip', 'w', zipfile.ZIP_DEFLATED) as file:
        file.writestr('zeros.bin', bytes(2**25))
    with pytest.raises(DataError, match='more than 200 times its own bytes'):
        unpack(tmp_path / 'bomb.zip', tmp_path / 'data')
    assert not list((tmp_path / 'data').glob('*.bin'))


@pytest.mark.parametrize('data', [b'', b'no archive', b'PK\x03\x04 broken', b'\x1f\x8b\x08 broken'])
def test_what_is_no_archive_is_told(tmp_path, data):
    (tmp_path / 'a.tar').write_bytes(data)
    with pytest.raises(DataError, match='a.tar cannot be unpacked: .*. Copy the archive again'):
        unpack(tmp_path / 'a.tar', tmp_path / 'data')


@pytest.mark.parametrize('name', ['x' * 300 + '/a.png', 'a/1.png/a.png'])
@pytest.mark.parametrize('kind', ['tar', 'zip'])
def test_names_that_no_folder_takes_are_told(tmp_path, name, kind):
    path = tmp_path / f'names.{kind}'
    if kind == 'tar':
        make_tar(path, member('a/1.png'), member(name))
    else:
        with zipfile.ZipFile(path, 'w') as file:
            file.writestr('a/1.png', '')
            file.writestr(name, '')
    with pytest.raises(DataError, match=r'names.* cannot be unpacked: .*, for .*(xxx|a\.png)'):
        unpack(path, tmp_path / 'out')


def test_an_archive_of_nothing_makes_an_empty_folder(tmp_path):
    tarfile.open(tmp_path / 'empty.tar', 'w').close()
    unpack(tmp_path / 'empty.tar', tmp_path / 'out')
    assert list((tmp_path / 'out').iterdir()) == []


def test_torchvision_unpacks_by_the_same_rules(tmp_path):
    """torchvision gives extractall no filter: within its bounds the filter is there, and afterwards it
    is as before.
    """
    archive = make_tar(tmp_path / 'a.tar', HOSTILE['parent'])
    before = tarfile.TarFile.extraction_filter
    with torchvision_bounds(), pytest.raises(DataError, match='outside its folder'):
        extract_archive(str(archive), str(tmp_path / 'data'))
    with only_plain_by_default(), pytest.raises(DataError, match='link or a device'):
        extract_archive(str(make_tar(tmp_path / 'b.tar', HOSTILE['absolute_link'])), str(tmp_path / 'data'))
    assert tarfile.TarFile.extraction_filter is before and not (tmp_path / 'outside.txt').exists()


def test_a_reader_of_torchvision_downloads_by_the_same_rules(tmp_path, web, monkeypatch):
    folder, address = web
    make_tar(folder / 'fgvc-aircraft-2013b.tar.gz', HOSTILE['parent'], mode='w:gz')
    monkeypatch.setattr(torchvision.datasets.FGVCAircraft, '_URL', f'{address}/fgvc-aircraft-2013b.tar.gz')
    with pytest.raises(DataError, match='outside its folder'):
        TorchvisionDataset(tmp_path / 'data', 'train', name='FGVCAircraft')
    assert not (tmp_path / 'outside.txt').exists()


def test_a_download_of_torchvision_that_was_cut_begins_again(tmp_path, web, monkeypatch):
    """FGVCAircraft has no hash: torchvision would take the cut file for the whole file, for ever."""
    folder, address = web
    archive = folder / 'fgvc-aircraft-2013b.tar.gz'
    monkeypatch.setattr(torchvision.datasets.FGVCAircraft, '_URL', f'{address}/{archive.name}')
    whole = make_tar(archive, member('fgvc-aircraft-2013b/data/variants.txt'), mode='w:gz').read_bytes()

    def answered(handler, source, target):
        target.write(whole[: len(whole) // 2])

    with monkeypatch.context() as patch:
        patch.setattr('http.server.SimpleHTTPRequestHandler.copyfile', answered)
        with pytest.raises(DataError, match='the server stopped .* bytes before the end'):
            TorchvisionDataset(tmp_path / 'data', 'train', name='FGVCAircraft')
    assert not list((tmp_path / 'data').iterdir())
    with pytest.raises(DataError, match='images_variant_train.txt'):  # of an archive that is whole
        TorchvisionDataset(tmp_path / 'data', 'train', name='FGVCAircraft')
    assert (tmp_path / 'data' / 'fgvc-aircraft-2013b' / 'data' / 'variants.txt').exists()


@pytest.mark.parametrize('bytes_left', [39_000, 39_936, 40_000], ids=['data', 'between members', 'header'])
def test_an_archive_of_torchvision_appears_whole_or_not_at_all(tmp_path, bytes_left):
    """A reader counts the images of the folders that it finds."""
    archive = make_tar(tmp_path / 'a.tar', *(member(f'2750/{i}.jpg', size=9000) for i in range(9)))
    archive.write_bytes(archive.read_bytes()[:bytes_left])
    (tmp_path / 'data' / '2750').mkdir(parents=True)
    with torchvision_bounds(), pytest.raises(DataError, match='a.tar cannot be unpacked'):
        extract_archive(str(archive), str(tmp_path / 'data'))
    assert [path.name for path in (tmp_path / 'data').rglob('*')] == ['2750']
    make_tar(archive, *(member(f'2750/{i}.jpg', size=9000) for i in range(9)))
    with torchvision_bounds():
        extract_archive(str(archive), str(tmp_path / 'data'))
    assert len(list((tmp_path / 'data' / '2750').iterdir())) == 9 and (tmp_path / 'data' / 'a.txt').exists()


def test_torchvision_follows_no_server_to_another_scheme(tmp_path, web, monkeypatch):
    folder, address = web

    def redirect(handler):
        handler.send_response(301)
        handler.send_header('Location', f'ftp://127.0.0.1/{handler.path}')
        handler.end_headers()

    monkeypatch.setattr('http.server.SimpleHTTPRequestHandler.do_GET', redirect)
    monkeypatch.setattr(torchvision.datasets.FGVCAircraft, '_URL', f'{address}/a.tar.gz')
    with pytest.raises(DataError, match=r"the server redirects to 'ftp://.*', which is refused"):
        TorchvisionDataset(tmp_path / 'data', 'train', name='FGVCAircraft')


@pytest.mark.parametrize('form', [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_vast_header_is_refused_before_it_is_read(tmp_path, form):
    info = member('a.txt')
    if form == tarfile.PAX_FORMAT:
        info.pax_headers = dict(comment='x' * (2**20 + 1))
    else:
        info.name = 'x' * (2**20 + 1)
    with tarfile.open(tmp_path / 'a.tar', 'w', format=form) as tar:
        tar.addfile(info)
    with pytest.raises(DataError, match=r'the archive holds a header of 1,04\d,\d+ bytes at'):
        unpack(tmp_path / 'a.tar', tmp_path / 'out')


def test_a_zip_file_at_the_end_of_a_tar_file(tmp_path):
    inner = make_zip(tmp_path / 'inner.zip', 'b.txt')
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        tar.addfile(member('c.txt', size=5), io.BytesIO(b'plain'))
        tar.add(inner, 'inner.zip')
    unpack(tmp_path / 'a.tar', tmp_path / 'out')
    assert sorted(os.listdir(tmp_path / 'out')) == ['c.txt', 'inner.zip']


def test_another_hash_is_told_with_the_size_and_nothing_is_unpacked(tmp_path, web):
    folder, address = web
    data = make_tar(folder / 'a.tar').read_bytes()
    right, wrong = hashlib.sha256(data).hexdigest(), 'ab' * 32
    with pytest.raises(
        DataError,
        match=f'a.tar is corrupted or another file: its sha256 is {right}, of {len(data):,} bytes.*{wrong}',
    ):
        provide(Download(f'{address}/a.tar', f'sha256:{wrong}'), tmp_path / 'data')
    assert os.listdir(tmp_path / 'data') == []
    provide(Download(f'{address}/a.tar', f'sha256:{right}'), tmp_path / 'data')
    assert os.listdir(tmp_path / 'data') == ['a.txt']
    (folder / 'list.mat').write_bytes(b'12')
    assert (
        fetch(Download(f'{address}/list.mat', f'md5:{hashlib.md5(b"12").hexdigest()}'), tmp_path).read_bytes()
        == b'12'
    )
    new = tmp_path / 'new' / 'folder'
    assert fetch(Download(f'{address}/a.tar', f'sha256:{right}'), new) == new / 'a.tar'


def test_every_download_has_https_and_a_hash():
    plugins = {DATASETS.find(name) for name in DATASETS.names()}
    downloads = [
        each for plugin in plugins if issubclass(plugin, PublishedDataset) for each in plugin.downloads
    ]
    assert len(downloads) == 8
    for each in downloads:
        kind, _, digest = each.digest.partition(':')
        assert each.url.startswith('https://') and len(digest) == {'md5': 32, 'sha256': 64}[kind]


@pytest.mark.parametrize(
    'name, inside',
    [
        ('images/a.jpg', True),
        ('a..jpg', True),
        ('images/.hidden', True),
        ('../a.jpg', False),
        ('images/../../a.jpg', False),
        ('/etc/passwd', False),
        ('..\\a.jpg', False),
        ('C:\\a.jpg', False),
        ('//server/a.jpg', False),
        ('images/..', False),
    ],
)
def test_inside(name, inside):
    assert is_inside(name) is inside


@pytest.mark.parametrize('path', ['../../secret.png', '/etc/passwd', 'a/../../../secret.png'])
def test_a_list_that_leads_outside_is_refused(tmp_path, paint, path):
    folder = tmp_path / 'data/CUB_200_2011'
    paint(tmp_path / 'secret.png', 1)
    paint(folder / 'images/a.jpg', 1)
    for name, lines in dict(
        classes='1 001.Bird', images=f'1 {path}', image_class_labels='1 1', train_test_split='1 1'
    ).items():
        (folder / f'{name}.txt').write_text(lines + '\n')
    with pytest.raises(DataError, match='outside .*its list is not the published one'):
        CUB200(tmp_path / 'data', 'train')


def test_a_vtab_list_that_leads_outside_is_refused(tmp_path, paint):
    paint(tmp_path / 'secret.png', 1)
    folder = tmp_path / 'vtab-1k/dtd'
    folder.mkdir(parents=True)
    (folder / 'train800.txt').write_text('../../secret.png 3\n')
    with pytest.raises(DataError, match='outside'):
        DATASETS.build(dict(type='VTAB', task='dtd'), root=tmp_path)


def test_flowers_come_by_the_same_road(tmp_path, web, monkeypatch):
    folder, address = web
    make_tar(folder / '102flowers.tgz', HOSTILE['link'], mode='w:gz')
    monkeypatch.setattr(
        Flowers102,
        'downloads',
        (
            Download(
                f'{address}/102flowers.tgz',
                'md5:' + hashlib.md5((folder / '102flowers.tgz').read_bytes()).hexdigest(),
            ),
        ),
    )
    with pytest.raises(DataError, match='download from http.*failed: the archive holds .link.*two ways'):
        Flowers102(tmp_path / 'data')
    assert os.listdir(tmp_path / 'data') == []


@pytest.mark.parametrize('name', ['', '.', './.'])
@pytest.mark.parametrize('kind', ['tar', 'zip'])
def test_a_file_without_a_name_does_not_replace_the_folder(tmp_path, kind, name):
    path = tmp_path / f'x.{kind}'
    if kind == 'tar':
        with tarfile.open(path, 'w') as tar:
            tar.addfile(member(name, size=1), io.BytesIO(b'x'))
    else:
        info = zipfile.ZipInfo('a')
        info.filename = name
        with zipfile.ZipFile(path, 'w') as file, file.open(info, 'w') as opened:
            opened.write(b'x')
    with pytest.raises(DataError, match='a file without a name'):
        unpack(path, tmp_path / 'out')
    assert not (tmp_path / 'out').is_file()


def test_the_folder_itself_may_be_listed(tmp_path):
    with tarfile.open(tmp_path / 'x.tar', 'w') as tar:
        tar.addfile(member('.', tarfile.DIRTYPE))
        tar.addfile(member('./a', size=1), io.BytesIO(b'x'))
    unpack(tmp_path / 'x.tar', tmp_path / 'out')
    assert (tmp_path / 'out' / 'a').read_bytes() == b'x'
