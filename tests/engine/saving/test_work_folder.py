"""What stands in a work folder, whole, damaged or foreign: a run goes on, or says why not, and harms
nothing.
"""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.runs import folder_run, small
from vet import build_trainer
from vet.engine.saving.checkpoint import (
    NewerError,
    Progress,
    list_checkpoints,
    load_checkpoint,
    load_optimizer_state,
    optimizer_state,
    save_checkpoint,
)
from vet.engine.saving.log import read_log
from vet.engine.saving.work_folder import WorkFolder
from vet.errors import DataError, TrainingError, UserError

ONE = {'train.max_epochs': 1}
OFTEN = {
    'train.max_epochs': 2,
    'train.checkpoint': dict(every_steps=2, keep=9),
    'train.ema': 0.9,
    'evaluation.select': 'best',
}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """The folder of a run of eight steps with checkpoints at every second one, and its trained tensors."""
    folder = tmp_path_factory.mktemp('made') / 'run'
    small(folder, **OFTEN).train()
    return folder


@pytest.fixture
def unfinished(made, tmp_path):
    """A copy of `made`, as it was before the end."""
    folder = shutil.copytree(made, tmp_path / 'run')
    (folder / 'summary.json').unlink()
    shutil.rmtree(folder / 'checkpoints/step-00000008')
    return folder


def weights(folder):
    return {name: tensor.tolist() for name, tensor in load_file(folder / 'output/tuner.safetensors').items()}


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


# Two runs ------------------------------------------------------------------------------------------------------------


def test_a_second_run_is_kept_out(made, unfinished, register_tuner):
    """As long as the first one trains, in its process or another; afterwards the folder is free."""
    first = WorkFolder(unfinished, 'auto')
    first._make()
    before = files(unfinished)
    with pytest.raises(
        TrainingError,
        match=r'another run writes in .*run.* now\. Wait until it ends, or give another work folder',
    ):
        small(unfinished, 'auto', **OFTEN).train()
    assert files(unfinished) == before
    first.close()
    small(unfinished, 'auto', **OFTEN).train()
    assert weights(unfinished) == weights(made)


def test_default_folders_of_one_second(tmp_path, monkeypatch):
    """Two trainers that are made within a second train in two folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('vet.builders.time.strftime', lambda _: '20300101-000000')
    source = small('none').settings.to_dict()
    source['dataset'] = {
        split: dict(type='Digits', split=split, digits=[5, 6]) for split in ('train', 'test')
    }
    source['train']['max_epochs'] = source['train']['lr_scheduler']['T_max'] = 1
    trainers = [build_trainer(model=source, device='cpu') for _ in range(2)]
    for trainer in trainers:
        trainer.train()
    assert sorted(path.name for path in (tmp_path / 'work_dirs/run').iterdir()) == [
        '20300101-000000',
        '20300101-000000-2',
    ]
    assert [trainer.folder.path.name for trainer in trainers] == ['20300101-000000', '20300101-000000-2']
    assert all((trainer.folder.path / 'summary.json').is_file() for trainer in trainers)


# Damage --------------------------------------------------------------------------------------------------------------


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position // 8 % len(data)] ^= 1 << position % 8
    path.write_bytes(data)


def test_flips_and_truncations_of_a_checkpoint(made, tmp_path):
    """Each of 240 is refused, or changes nothing that is read."""
    whole, draw, tried = list_checkpoints(made / 'checkpoints')[-1], np.random.default_rng(0), 0
    progress, parts = load_checkpoint(whole)
    for name in ('progress.json', 'state.safetensors'):
        size = (whole / name).stat().st_size
        for position in draw.integers(0, 8 * size, 120):
            folder = shutil.copytree(whole, tmp_path / 'step-00000008')
            if tried % 2:
                os.truncate(folder / name, int(position) // 8)
            else:
                flip(folder / name, int(position))
            tried += 1
            try:
                found, tensors = load_checkpoint(folder)
            except (DataError, NewerError):
                pass
            else:
                assert found == progress
                assert all(
                    tensors[part][key].equal(tensor)
                    for part, named in parts.items()
                    for key, tensor in named.items()
                )
            shutil.rmtree(folder)
    assert tried == 240


@pytest.mark.parametrize('name', ['progress.json', 'state.safetensors'])
def test_the_newest_whole_checkpoint_is_taken(made, unfinished, capfd, name):
    """One flipped bit in the newest: the run says so, goes on from the one before, and ends with the
    same weights.
    """
    newest = unfinished / 'checkpoints/step-00000006'
    flip(newest / name, 8 * (newest / name).stat().st_size // 2)
    summary = small(unfinished, 'auto', **OFTEN).train()
    err = capfd.readouterr().err
    assert (
        "step-00000006' cannot be read" in err
        and 'continues from ' in err
        and "step-00000004', which is whole" in err
    )
    assert weights(unfinished) == weights(made) and summary['steps'] == 8
    assert (unfinished / 'checkpoints/step-00000006.damaged').is_dir()
    assert [path.name for path in list_checkpoints(unfinished / 'checkpoints')][-2:] == [
        'step-00000006',
        'step-00000008',
    ]


def test_checkpoints_after_the_chosen_one_go(made, unfinished):
    """A run that continues from step 2 must not find steps of the other course at the next --resume auto."""
    earlier = unfinished / 'checkpoints/step-00000002'
    folder = WorkFolder(unfinished, earlier)
    folder._clear(list_checkpoints(unfinished / 'checkpoints'), earlier)
    assert [path.name for path in list_checkpoints(unfinished / 'checkpoints')] == ['step-00000002']
    small(unfinished, str(earlier), **OFTEN).train()
    assert weights(unfinished) == weights(made)


def test_an_old_checkpoint_that_cannot_be_removed_is_named(tmp_path):
    """A file stands where a folder is expected, so that the system refuses to remove the folder."""
    (tmp_path / 'step-00000001').write_text('no folder')
    with pytest.raises(TrainingError, match=r'cannot write .*Not a directory\. Choose another folder'):
        save_checkpoint(tmp_path, Progress(0, step=2), {'model': {'w': torch.ones(1)}}, keep=1)
    assert load_checkpoint(tmp_path / 'step-00000002')[0].step == 2


def test_no_whole_checkpoint(unfinished):
    for checkpoint in list_checkpoints(unfinished / 'checkpoints'):
        flip(checkpoint / 'state.safetensors', 10_000)
    with pytest.raises(
        DataError,
        match=r'no checkpoint in .* is whole\..*it is damaged or changed.*begin anew in another work folder',
    ):
        small(unfinished, 'auto', **OFTEN).train()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def deep(path):
    path.write_text('[' * 100_000)


def binary(path):
    path.write_bytes(b'\xff\x00' * 20)


def empty(path):
    path.write_bytes(b'')


def a_list(path):
    path.write_text('[1, 2]')


@pytest.mark.parametrize(
    'damage',
    [cut, deep, empty, *(pytest.param(damage, marks=pytest.mark.slow) for damage in (binary, a_list))],
    ids=lambda damage: damage.__name__,
)
@pytest.mark.parametrize(
    'name', ['config.json', 'identity.json', 'summary.json', 'environment.json', 'log.jsonl']
)
def test_a_damaged_record(made, tmp_path, name, damage):
    """Of a finished run: what decides is refused by name; what a run writes again is written again."""
    folder = shutil.copytree(made, tmp_path / 'run')
    damage(folder / name)
    if name in ('config.json', 'identity.json'):
        with pytest.raises(UserError, match=name):
            small(folder, 'auto', **OFTEN).train()
    else:
        assert small(folder, 'auto', **OFTEN).train()['steps'] == 8
        assert json.loads((folder / 'summary.json').read_text())['steps'] == 8
        assert weights(folder) == weights(made)


def test_a_damaged_log_is_told(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / 'run')
    with open(folder / 'log.jsonl', 'r+') as file:
        file.seek(3)
        file.write('\x00')
    with pytest.raises(DataError, match=r'log\.jsonl.* is damaged: line 1 is no record'):
        read_log(folder)
    (folder / 'summary.json').unlink()
    assert small(folder, 'auto', **OFTEN).train()['steps'] == 8  # curves are no reason to lose a run


def test_a_damaged_model_folder_of_a_finished_run(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / 'run')
    cut(folder / 'output/tuner.safetensors')
    with pytest.raises(DataError, match=r'tuner\.safetensors.*damaged'):
        small(folder, 'auto', **OFTEN).train()


def test_a_newer_version(unfinished):
    progress = unfinished / 'checkpoints/step-00000006/progress.json'
    values = json.loads(progress.read_text())
    progress.write_text(json.dumps(values | dict(format=4, vet='9.0', more=1)))
    with pytest.raises(NewerError, match=r'newer version of vet \(9\.0; this is .*Update vet'):
        small(unfinished, 'auto', **OFTEN).train()
    environment = json.loads((unfinished / 'environment.json').read_text())
    (unfinished / 'environment.json').write_text(json.dumps(environment | dict(vet='9.0')))
    config = json.loads((unfinished / 'config.json').read_text())
    config['train']['more'] = 1
    (unfinished / 'config.json').write_text(json.dumps(config))
    progress.write_text(json.dumps(values))
    with pytest.raises(TrainingError, match=r'train\.more differ.*newer version of vet \(9\.0'):
        small(unfinished, 'auto', **OFTEN).train()


@pytest.mark.parametrize(
    'change, part',
    [
        (lambda value: value[:1], 'of shape'),
        (lambda value: value.double(), 'torch.float64'),
        (lambda value: value * float('nan'), 'exp_avg'),
    ],
    ids=['shape', 'dtype', 'nan'],
)
@pytest.mark.parametrize('kind', ['AdamW', 'SGD', 'Adafactor'])
def test_optimizer_state_that_does_not_fit(kind, change, part):
    """A moment of another shape would be read beyond its end."""
    layer = torch.nn.Linear(6, 3)
    options = dict(momentum=0.9) if kind == 'SGD' else {}
    optimizers = [getattr(torch.optim, kind)(layer.parameters(), lr=0.1, **options) for _ in range(2)]
    layer(torch.ones(1, 6)).sum().backward()
    optimizers[0].step()
    parameters = dict(layer.named_parameters())
    saved = optimizer_state(optimizers[0], {parameter: name for name, parameter in parameters.items()})
    load_optimizer_state(optimizers[1], parameters, saved)
    for name, tensor in optimizer_state(optimizers[1], {p: name for name, p in parameters.items()}).items():
        assert tensor.equal(saved[name]) and tensor.dtype == saved[name].dtype
    key = next(key for key, value in saved.items() if value.ndim == 2)
    fresh = getattr(torch.optim, kind)(layer.parameters(), lr=0.1, **options)
    if kind == 'AdamW' or part != 'exp_avg':
        with pytest.raises(DataError, match=part):
            load_optimizer_state(fresh, parameters, saved | {key: change(saved[key])})
        assert not fresh.state


def test_a_checkpoint_of_another_shape(unfinished):
    """Its checksums are right: somebody made it so."""
    from vet.core.tensor_file import sha256_of
    from vet.engine.saving.checkpoint import checksum

    folder = unfinished / 'checkpoints/step-00000006'
    tensors = load_file(folder / 'state.safetensors')
    name = next(name for name in tensors if name.startswith('ema.'))
    save_file(tensors | {name: tensors[name].to(torch.int32)}, folder / 'state.safetensors')
    values = json.loads((folder / 'progress.json').read_text())
    values['sha256'] = {'state.safetensors': sha256_of((folder / 'state.safetensors').read_bytes())}
    (folder / 'progress.json').write_text(json.dumps(values | dict(checksum=checksum(values))))
    with pytest.raises(DataError, match='the checkpoint, ema: .* is torch.int32'):
        small(unfinished, 'auto', **OFTEN).train()


# Occupied ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name, is_folder',
    [
        ('summary.json', True),
        ('log.jsonl', True),
        ('curves.png', True),
        ('example.png', True),
        ('predictions.npz', True),
        ('predictions.csv', True),
        ('report.html', True),
        ('output', False),
        ('tensorboard', False),
        ('checkpoints', False),
    ],
)
def test_a_name_that_is_taken_by_another_kind(tmp_path, name, is_folder):
    """Found before training, not after it."""
    path = tmp_path / 'run' / name
    path.parent.mkdir()
    path.mkdir() if is_folder else path.write_text('mine')
    with pytest.raises(
        UserError, match=f'{name}.* is a {"folder" if is_folder else "file"}, but a run writes'
    ):
        small(tmp_path / 'run', **ONE).train()


@pytest.mark.parametrize('name', ['output/thesis.txt', 'config.json'])
def test_what_is_not_a_runs_is_not_written_over(tmp_path, name):
    path = tmp_path / 'run' / name
    path.parent.mkdir(parents=True)
    path.write_text('mine')
    with pytest.raises(UserError, match='is not from a run in this folder'):
        small(tmp_path / 'run', **ONE).train()
    assert path.read_text() == 'mine'


def test_a_folder_that_is_replaced_under_the_run(tmp_path, monkeypatch):
    """Named at the next save; nothing is written into the new folder."""
    trainer = small(tmp_path / 'run', **OFTEN)
    save = WorkFolder.save

    def replaced(folder, progress, *args):
        if progress.step == 4:
            folder.path.rename(tmp_path / 'moved')
            (tmp_path / 'run').mkdir()
        return save(folder, progress, *args)

    with monkeypatch.context() as patch:
        patch.setattr(WorkFolder, 'save', replaced)
        with pytest.raises(TrainingError, match='was moved, removed or replaced while the run wrote there'):
            trainer.train()
    assert not list((tmp_path / 'run').iterdir())
    assert load_checkpoint(list_checkpoints(tmp_path / 'moved/checkpoints')[-1])[0].step == 2
    assert small(tmp_path / 'moved', 'auto', **OFTEN).train()['steps'] == 8


# What is tried at the start ------------------------------------------------------------------------------------------


def test_a_class_name_that_no_file_can_hold(tmp_path, jpegs):
    """The name of a folder in Latin-1: refused at the start, not when the model is saved."""
    root = shutil.copytree(jpegs, tmp_path / 'images')
    for split in ('train', 'test'):
        os.rename(root / split / 'b', os.fsencode(root / split) + b'/\xe4pfel')
    with pytest.raises(UserError, match=r'\\udce4pfel.* UTF-8, so that no model folder c.* hold .*Rename'):
        folder_run(tmp_path / 'run', root, **ONE).train()
    assert not (tmp_path / 'run/log.jsonl').exists()


@pytest.mark.parametrize('name', ['log.jsonl', 'tensorboard', 'checkpoints'])
def test_links_within_a_work_folder_are_refused(tmp_path, unfinished, name):
    """A stranger's folder would have the run write, or cut, what the link leads to."""
    outside, path = tmp_path / 'outside', unfinished / name
    if path.exists():
        path.rename(outside)
    else:
        outside.mkdir()
    before = sorted(outside.rglob('*')) if outside.is_dir() else outside.read_bytes()
    path.symlink_to(outside)
    with pytest.raises(TrainingError, match=f"{name}' is a link"):
        small(unfinished, 'auto', **OFTEN).train()
    assert before == (sorted(outside.rglob('*')) if outside.is_dir() else outside.read_bytes())
