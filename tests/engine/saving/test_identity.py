"""A run goes on only with the classes, images and backbone weights that it was begun with, and says
what differs.
"""

import importlib
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.engine.runs import SmallDigits, build, folder_run, small
from vet.engine.saving.identity import differences, identity_of, other_versions
from vet.errors import TrainingError
from vet.registry import TUNERS

QUICK = {'train.max_epochs': 1, 'evaluation.before': False}


@pytest.fixture
def root(tmp_path, jpegs):
    """A copy of the images, to change."""
    return shutil.copytree(jpegs, tmp_path / 'images')


def identity(root, **changes):
    """Of a run on the images as they are now."""
    trainer = folder_run(root.parent / 'none', root)
    return json.loads(json.dumps(identity_of(trainer.model, trainer.data) | changes))


def rename_class(root):
    for split in ('train', 'test'):
        (root / split / 'b').rename(root / split / 'c')


def double(root):
    for path in list((root / 'train').rglob('*.jpg')):
        shutil.copy(path, path.with_name(f'again-{path.name}'))


def swap_contents(root):
    """Names and labels stay."""
    one, other = root / 'test/a/0.jpg', root / 'test/a/1.jpg'
    Image.new('RGB', (20, 20), 'red').save(one, quality=50)
    other.write_bytes(one.read_bytes())


def relabel(root):
    (root / 'train/a/3.jpg').rename(root / 'train/b/3-a.jpg')


CHANGES = {
    'a renamed class': (rename_class, r"the classes \(label 1 was 'b', now 'c'\)"),
    'twice the images': (double, r'the train images \(24, now 48\)'),
    'other contents': (swap_contents, r'the test split \(the contents of the images\)'),
    'another label': (
        relabel,
        r'the train split \(the names of the images, the labels, the contents of the images\)',
    ),
}


@pytest.mark.parametrize('is_finished', [True, False])
def test_a_renamed_class_is_refused(tmp_path, root, is_finished):
    """A finished run would answer with the old names, and an unfinished one would publish the new names."""
    folder_run(tmp_path / 'run', root, **QUICK).train()
    if not is_finished:
        (tmp_path / 'run/summary.json').unlink()
    rename_class(root)
    with pytest.raises(
        TrainingError, match=CHANGES['a renamed class'][1] + '.*begin anew in another work folder'
    ):
        folder_run(tmp_path / 'run', root, 'auto', **QUICK).train()


@pytest.mark.parametrize('change', CHANGES)
def test_what_differs_is_named(root, change):
    before = identity(root)
    CHANGES[change][0](root)
    assert re.match(CHANGES[change][1], differences(before, identity(root))[0])


def test_a_moved_folder_is_the_same(root):
    """And a copy of it, with other times."""
    before = identity(root)
    moved = shutil.copytree(root, root.parent / 'elsewhere' / 'deeper', copy_function=shutil.copyfile)
    assert differences(before, identity(moved)) == []


def test_images_in_memory(tmp_path):
    one, other = small(tmp_path / 'one'), small(tmp_path / 'two')
    assert differences(identity_of(one.model, one.data), identity_of(other.model, other.data)) == []
    samples = other.data['train'].samples
    source, label = samples[7]
    samples[7] = (255 - np.asarray(source), label)
    [text] = differences(identity_of(one.model, one.data), identity_of(other.model, other.data))
    assert text == 'the train split (the contents of the images)'


class Tempered(SmallDigits):
    """A dataset that says its objective, which then stands in no config."""

    objective = dict(type='SingleLabel', temperature=2.0)


def test_another_objective_of_the_dataset_is_refused(tmp_path):
    def run(kind, resume=None):
        data = dict(train_dataset=kind('train'), eval_dataset=kind('test'))
        return build(tmp_path / 'run', resume, data, **QUICK)

    trainer = run(Tempered)
    trainer.train()
    for name in (None, 'summary.json'):
        (tmp_path / 'run' / (name or 'none')).unlink(missing_ok=True)
        with pytest.raises(
            TrainingError, match=r"the objective \(\{.*'temperature': 2\.0\}, now \{'type': 'SingleLabel'\}"
        ):
            run(SmallDigits, 'auto').train()
    before = identity_of(trainer.model, trainer.data)
    del before['objectives']  # of an older vet
    assert differences(before, identity_of(trainer.model, trainer.data)) == []


def turned(source):
    """The same bytes in another shape."""
    pixels = np.asarray(source)
    return pixels.reshape(pixels.shape[0] * 2, pixels.shape[1] // 2, *pixels.shape[2:])


def recoloured(source):
    image = Image.fromarray(np.zeros((8, 8), np.uint8), 'P')
    image.putpalette([255, 0, 0] if source is None else [0, 255, 0])
    return image


@pytest.mark.parametrize('change', [turned, recoloured])
def test_images_of_the_same_bytes_may_be_others(tmp_path, change):
    one, other = small(tmp_path / 'one'), small(tmp_path / 'two')
    samples, label = one.data['train'].samples, one.data['train'].samples[7][1]
    if change is recoloured:
        samples[7] = (recoloured(None), label)
    other.data['train'].samples[7] = (change(samples[7][0]), label)
    before = identity_of(one.model, one.data)
    [text] = differences(before, identity_of(other.model, other.data))
    assert text == 'the train split (the shapes, kinds or palettes of the images)'
    del before['data']['train']['forms']  # of an older vet
    assert differences(before, identity_of(other.model, other.data)) == []


def test_other_weights_and_versions(root):
    before = identity(root)
    now = dict(before, weights={'': '0' * 64}, versions=before['versions'] | dict(torch='1.0'))
    [text] = differences(before, now)
    assert text.startswith("the backbone's weights (sha256 ") and text.endswith(f'now {"0" * 64})')
    assert other_versions(before, now) == [f'torch {before["versions"]["torch"]}, now 1.0']


@pytest.mark.slow
def test_other_weights_at_the_same_path_are_refused(tmp_path):
    import timm
    from safetensors.torch import save_file

    path = tmp_path / 'weights.safetensors'
    options = QUICK | {
        'model.backbone': dict(type='timm', name='test_vit', checkpoint=str(path)),
        'train.max_epochs': 1,
        'train.transform': [dict(type='Resize', size=[160, 160])],
    }
    for scale in (1.0, 1.01):
        state = timm.create_model('test_vit', num_classes=0).state_dict()
        save_file({name: tensor * scale for name, tensor in state.items()}, path)
        if scale == 1.0:
            small(tmp_path / 'run', **options).train()
    with pytest.raises(TrainingError, match="the backbone's weights .*sha256"):
        small(tmp_path / 'run', 'auto', **options).train()


def test_a_run_of_an_older_version_goes_on(tmp_path, capfd):
    """Its folder has no identity, and its checkpoints have no checksums."""
    summary = small(tmp_path / 'run', **{'train.max_epochs': 1}).train()
    for name in ('identity.json', 'summary.json', '.lock'):
        (tmp_path / 'run' / name).unlink()
    [progress] = (tmp_path / 'run/checkpoints').glob('*/progress.json')
    values = json.loads(progress.read_text())
    old = {
        key: value
        for key, value in values.items()
        if key not in ('vet', 'format', 'sha256', 'checksum', 'pending', 'meter')
    }
    progress.write_text(json.dumps(old))
    capfd.readouterr()
    assert (
        small(tmp_path / 'run', 'auto', **{'train.max_epochs': 1}).train()['accuracy'] == summary['accuracy']
    )
    assert 'has no identity.json, because an older vet began the run' in capfd.readouterr().err


def test_a_run_says_that_the_code_of_a_plugin_has_changed(tmp_path, monkeypatch, capfd):
    plugin = tmp_path / 'own_tuner_of_identity.py'
    plugin.write_text(
        'from vet.tuners.lora import LoRA\nfrom vet.registry import TUNERS\n\n\n'
        '@TUNERS.register_module()\nclass OwnOfIdentity(LoRA):\n    """LoRA."""\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(plugin.stem)
    options = {'train.max_epochs': 1, 'model.tuners': [dict(type='OwnOfIdentity', rank=2)]}
    said = f'the file of {plugin.stem} has changed'
    small(tmp_path / 'run', **options).train()
    small(tmp_path / 'run', 'auto', **options).train()
    assert said not in capfd.readouterr().err
    plugin.write_text(plugin.read_text() + '# another line\n')
    small(tmp_path / 'run', 'auto', **options).train()
    assert said in capfd.readouterr().err
    identity_file = tmp_path / 'run/identity.json'
    before = json.loads(identity_file.read_text())
    del before['plugins']  # as an older vet wrote the file
    identity_file.write_text(json.dumps(before))
    small(tmp_path / 'run', 'auto', **options).train()
    assert said not in capfd.readouterr().err
    TUNERS.module_dict.pop('OwnOfIdentity')


def test_a_plugin_without_a_module_is_no_file(tmp_path):
    """`exec` of a text makes such a class."""
    text = '@TUNERS.register_module()\nclass OfNoModule(LoRA): pass'
    exec(text, dict(TUNERS=TUNERS, LoRA=TUNERS.get('LoRA'), __name__=None))
    assert TUNERS.get('OfNoModule').__module__ is None
    run = small(tmp_path / 'run', **{'train.max_epochs': 1})
    run.train()
    assert json.loads((tmp_path / 'run/identity.json').read_text())['plugins'] == {}
    TUNERS.module_dict.pop('OfNoModule')


class Own:
    """A dataset that does not say what its items are read from."""

    classes = ['a', 'b']

    def __init__(self, shift=0, is_random=False):
        self.shift, self.is_random = shift, is_random

    def __len__(self):
        return 20

    def __getitem__(self, index):
        draw = np.random.default_rng() if self.is_random else np.random.default_rng(index + self.shift)
        return draw.integers(0, 256, (8, 8, 3), dtype=np.uint8), (index + self.shift) % 2


def test_items_of_a_users_own_dataset_are_compared_where_they_stay_the_same(tmp_path):
    model = small(tmp_path / 'run').model
    was, same, other, random, again = (
        identity_of(model, dict(train=data)) for data in (Own(), Own(), Own(1), Own(0, True), Own(0, True))
    )
    assert not list(differences(was, same)) and not list(differences(random, again))
    assert 'the contents of the images' in ' '.join(differences(was, other))
