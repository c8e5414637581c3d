"""The commands as a user types them: what they write and print, and one message and exit code 2 for
each mistake.
"""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vet.cli.train import GoOn

ROOT = Path(__file__).parents[2]
LONG = 'x' * 300
QUICKSTART = ROOT / 'configs/quickstart.py'
QUICK = ['--cfg-options', 'train.max_epochs=1', 'evaluation.before=False']


def train(*options, config=QUICKSTART):
    return [
        'train',
        config,
        '--work-dir',
        'work',
        '--device',
        'cpu',
        '--cfg-options',
        'train.max_epochs=1',
        *options,
    ]


# What is printed and written ---------------------------------------------------------------------------------------


def test_train_as_a_user(capsys, tmp_path):
    """On a terminal: a bar with loss, accuracy and time left, then the summary; the line of Python runs
    as it is printed.
    """
    work, (ours, theirs) = tmp_path / 'a folder [1] :smile:', pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            ROOT / 'tools/train.py',
            QUICKSTART,
            '--work-dir',
            work,
            '--device',
            'cpu',
            '--cfg-options',
            'train.max_epochs=1',
            'train.log_every=1',
            'evaluation.select=best',
        ],
        stderr=theirs,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', TERM='xterm', COLUMNS='120'),
    )
    os.close(theirs)
    shown = b''
    while chunk := _read(ours):
        shown += chunk
    os.close(ours)
    text = shown.decode()
    results = process.stdout.read()
    line = results.splitlines()[-1]
    assert process.wait() == 0, text
    summary = json.loads((work / 'summary.json').read_text())
    for part in ('epoch 1/1', 'loss ', ', accuracy ', 'left', 'epoch 1: loss', 'validation accuracy'):
        assert part in text and part not in results, (part, text, results)
    for part in (
        'epoch 1, the best on 60 images',
        f'{summary["before"]["accuracy"]:.4f}',
        f'{summary["accuracy"]:.4f}',
        '12,613',
        '314,629',
        f'{summary["output_bytes"]:,} bytes',
        f'written to            {work}',
        '1 epochs of 539 images',
    ):
        assert part in results and part not in text, (part, text, results)
    assert {path.name for path in work.iterdir()} == {
        '.lock',
        'identity.json',
        'checkpoints',
        'config.json',
        'curves.png',
        'environment.json',
        'example.png',
        'log.jsonl',
        'output',
        'predictions.csv',
        'predictions.npz',
        'report.html',
        'summary.json',
        'tensorboard',
    }
    assert summary['output_bytes'] == (work / 'output/tuner.safetensors').stat().st_size
    exec(line, {})
    assert set(eval(capsys.readouterr().out)) == {'scores', 'labels'}


def _read(handle):
    try:
        return os.read(handle, 65536)
    except OSError:  # Linux's end of file on a closed terminal
        return b''


@pytest.mark.slow
def test_options_of_train(command, tmp_path):
    code, out, err = command(
        'train',
        QUICKSTART,
        '--work-dir',
        'work',
        '--seed',
        7,
        '--device',
        'cpu',
        '--data-root',
        tmp_path,
        '--cfg-options',
        'train.max_epochs=2',
        'model.backbone.lora_length=[2,0,2,0,0,0]',
        'evaluation.before=False',
    )
    assert code == 0, err
    config = json.loads(Path('work/config.json').read_text())
    assert config['seed'] == 7 and config['train']['max_epochs'] == 2
    assert config['model']['tuners'] == [dict(type='LoRA', rank=[2, 0, 2, 0, 0, 0])]
    assert 'test accuracy after' in out and 'before' not in out
    before = Path('work/output/tuner.safetensors').read_bytes()
    again = [
        'train',
        QUICKSTART,
        '--work-dir',
        'work',
        '--seed',
        7,
        '--device',
        'cpu',
        '--cfg-options',
        'train.max_epochs=2',
        'model.backbone.lora_length=[2,0,2,0,0,0]',
        'evaluation.before=False',
    ]
    code, _, err = command(*again)
    assert (
        code == 2
        and 'holds a finished run; continue with --resume auto (from Python: resume="auto"), or give another work folder'
        in err
    )
    assert command(*again[:4], '--resume', *again[4:])[:2] == (0, out)  # auto: nothing is left to do
    checkpoint = sorted(Path('work/checkpoints').iterdir())[0]
    shutil.rmtree('work/output')
    code, _, err = command(*again[:4], '--resume', checkpoint, *again[4:])
    assert code == 0, err
    assert Path('work/output/tuner.safetensors').read_bytes() == before  # bit for bit


@pytest.mark.slow
def test_default_work_dir_and_resume(command):
    # nothing to resume: a fresh start
    assert command('train', QUICKSTART, '--device', 'cpu', '--resume', 'auto', *QUICK)[0] == 0
    [work] = Path('work_dirs/quickstart').iterdir()
    code, out, _ = command('train', QUICKSTART, '--device', 'cpu', '--resume', 'auto', *QUICK)
    assert code == 0 and [work] == list(Path('work_dirs/quickstart').iterdir()) and str(work) in out


@pytest.mark.parametrize(
    'given, program, rest',
    [
        (['vet train', 'c.py', '--work-dir', 'w', '--resume'], 'vet train', 'c.py'),
        (['vet train', '--work=w', 'c.py', '--resume', 'old/checkpoints/step-1'], 'vet train', 'c.py'),
        (
            ['my tools/train.py', 'c.py', '--cfg-options', 'a=1', 'b=c d', '--work-dir', 'w', '--seed', '-1'],
            "python 'my tools/train.py'",
            "c.py --cfg-options a=1 'b=c d' --seed -1",
        ),
    ],
)
def test_the_line_that_continues_a_run_says_its_place_once(trainer, monkeypatch, given, program, rest):
    monkeypatch.setattr(sys, 'argv', given)
    assert str(GoOn(trainer)) == f'{program} {rest} --work-dir {trainer.folder.path} --resume auto'


def test_cfg_options_may_be_given_twice(command):
    code, _, err = command(
        'train',
        QUICKSTART,
        '--work-dir',
        'work',
        '--device',
        'cpu',
        '--cfg-options',
        'train.max_epochs=1',
        '--cfg-options',
        'seed=3',
        'evaluation.before=False',
    )
    assert code == 0, err
    config = json.loads(Path('work/config.json').read_text())
    assert config['seed'] == 3 and config['train']['max_epochs'] == 1


def test_test_equals_the_summary(command, trainer, tmp_path):
    expected = {'accuracy': trainer.summary['accuracy']}
    for folder in (trainer.folder.path, trainer.folder.output):
        code, out, err = command('test', folder, '--device', 'cpu')
        assert code == 0, err
        assert json.loads(out) == expected
    code, out, _ = command(
        'test',
        trainer.folder.path,
        '--device',
        'cpu',
        '--split',
        'train',
        '--cfg-options',
        'evaluation.metrics=[accuracy,top5]',
    )
    assert json.loads(out) == trainer.evaluate('train') | {'top5': 1.0}


def test_test_needs_only_the_split_it_reads(command, tmp_path):
    assert command(*folder_config(tmp_path))[0] == 0
    (tmp_path / 'pets').rename(tmp_path / 'photos')
    code, out, err = command(
        'test',
        'work',
        '--device',
        'cpu',
        '--data-root',
        tmp_path,
        '--cfg-options',
        'dataset.test.type=ImageFolder',
        'dataset.test.path=photos',
    )
    assert code == 0, err
    assert set(json.loads(out)) == {'accuracy'}


def test_predict(command, trainer, tmp_path):
    folder = tmp_path / ('deep ' * 12) / 'red [bold] :cat:'
    names = [folder / 'b [/red].png', folder / 'below/a.PNG']  # which reads like the end of a rich tag
    for name in names:
        name.parent.mkdir(parents=True)
    for i, name in enumerate(names):
        trainer.data['test'][i][0].save(name, 'png')
    (folder / 'notes.txt').write_text('no image')
    code, out, err = command(
        'predict', trainer.folder.path, folder, names[1], '--format', 'json', '--device', 'cpu', '--topk', 2
    )
    assert code == 0, err
    results = json.loads(out)
    assert [result['image'] for result in results] == [*map(str, names), str(names[1])]
    expected = trainer.predict([trainer.data['test'][i][0] for i in (0, 1)], topk=2)
    assert [result['labels'] for result in results[:2]] == [e['labels'] for e in expected]
    code, out, _ = command('predict', trainer.folder.output, folder, '--device', 'cpu', '--batch-size', 1)
    assert code == 0 and all(f'{name}  ' in out for name in names)  # a long name is neither cut nor folded
    assert len(out.splitlines()) == 1 + 10


def test_export(command, trainer, tmp_path):
    assert command('export', trainer.folder.path, 'merged.safetensors')[0] == 0
    merged, own = load_file('merged.safetensors'), trainer.model.backbone.network.state_dict()
    assert set(merged) == set(own)
    assert {name for name in own if not torch.equal(own[name], merged[name])} == {
        f'blocks.{i}.attn.qkv.weight' for i in range(6)
    }


# What a user gets wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'option, parts',
    [
        ('train.max_epoch=3', ["key in train 'max_epoch'", "'max_epochs'"]),
        ('model.backbone.lora_length=-1', ['rank is -1', 'at least 1']),
        ('model.backbone.lora_length=[1,2]', ['rank has 2 values', '6 blocks']),
        ('model.backbone.lora_length=abc', ["rank is 'abc'"]),
        ('model.backbone.type=Digitvit', ["unknown backbone 'Digitvit'", "'DigitsViT'"]),
        ('model.head.type=Linnear', ["unknown head 'Linnear'", "'Linear'"]),
        ('model.head.num_classes=4', ['model.head.num_classes is 4', '5 classes']),
        (
            'model.head.dropout=abc',
            ["dropout is 'abc'; it must be a number at least 0 and below 1 (head 'Linear')"],
        ),
        ('dataset.train.type=Digit', ["unknown dataset 'Digit'", "'Digits'"]),
        ('dataset.train.split=training', ["'training'", 'Allowed: test, train']),
        ('dataset.train.digits=[5,6]', ['dataset.test has other classes']),
        ('train.optimizer.type=Adamw', ["unknown optimizer 'Adamw'", "'AdamW'"]),
        ('train.optimizer.lr=0', ['it must be a number above 0']),
        ('evaluation.metrics=acc', ["unknown metric 'acc'"]),
        ('train.transform.0.type=RandomAffin', ["unknown transform 'RandomAffin'", "'RandomAffine'"]),
    ],
)
def test_config_mistakes(fails, option, parts):
    fails(*parts, of=train(option))
    assert not Path('work/output').exists()


@pytest.mark.parametrize(
    'tuner, parts',
    [
        ("dict(type='Lora')", ["unknown tuner 'Lora'", "'LoRA'"]),
        ("dict(type='LoRA', rank=0)", ['rank is 0', 'at least 1']),
        ("dict(type='LoRA', rank=-2)", ['rank is -2']),
        ("dict(type='LoRA', ranks=2)", ["'ranks'", "'rank'"]),
        ("dict(type='LoRA', at='attn.qvk')", ["role or module path 'attn.qvk'", "'attn.qkv'"]),
        ("dict(type='LoRA', at='block[9:]')", ["'block[9:]' matches no site", '6 blocks']),
    ],
)
def test_tuner_mistakes(fails, tuner, parts):
    Path('config.py').write_text(
        f'_base_ = [{str(QUICKSTART)!r}]\n'
        f"model = dict(backbone=dict(_delete_=True, type='DigitsViT'), tuners=[{tuner}])\n"
    )
    fails(*parts, of=train(config='config.py'))


def test_options_that_are_none(command):
    for options in (['train.max_epochs'], ['a=[1,2']):
        code, _, err = command(*train(*options))
        assert code == 2 and '--cfg-options takes KEY=VALUE' in err and 'Traceback' not in err
    assert command('train')[0] == command('train', QUICKSTART, '--seed', 'x')[0] == 2


def test_missing_things(fails, trainer, tmp_path):
    fails("'none.py' does not exist", of=train(config='none.py'))
    fails("unknown model 'none'", of=train(config='none'))
    fails("the device 'cudda' cannot be used", of=['train', QUICKSTART, '--device', 'cudda'])
    fails('cannot be read', 'step-', of=[*train(), '--resume', tmp_path / 'none'])
    fails('is no model folder', of=['test', tmp_path])
    fails("no 'val' split", of=['test', trainer.folder.path, '--split', 'val', '--device', 'cpu'])
    fails(
        'other classes (2: 1, 2, …) than the model (5: 5, 6, 7, …)',
        of=['test', trainer.folder.path, '--device', 'cpu', '--cfg-options', 'dataset.test.digits=[1,2]'],
    )
    fails('none.png', of=['predict', trainer.folder.path, 'none.png', '--device', 'cpu'])
    (tmp_path / 'empty').mkdir()
    fails(
        'holds no image that Pillow reads',
        of=['predict', trainer.folder.path, tmp_path / 'empty', '--device', 'cpu'],
    )
    fails(
        '--import none.py failed: ModuleNotFoundError',
        of=['predict', trainer.folder.path, 'x.png', '--import', 'none.py'],
    )


def folder_config(tmp_path):
    """A config of an image folder of two classes, with two pictures each, and the class folders."""
    for name in ('cat', 'dog'):
        (tmp_path / 'pets' / name).mkdir(parents=True)
        for i in range(2):
            Image.effect_noise((32, 32), 90 + i).save(tmp_path / f'pets/{name}/{i}.png')
    config = tmp_path / 'pets.py'
    config.write_text(
        "dataset = dict(train=dict(type='ImageFolder', path='pets'))\nmodel = dict(backbone=dict(type='DigitsViT'))\n"
        'train = dict(dataloader=dict(batch_size_per_gpu=2, workers_per_gpu=2))\n'
    )
    return [*train(config=config), '--data-root', tmp_path]


def test_broken_image_folders(fails, command, tmp_path):
    arguments = folder_config(tmp_path)
    broken = tmp_path / 'pets/dog/1.png'
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    fails(str(broken), 'truncated', of=arguments)  # also out of a worker process
    broken.unlink()
    (tmp_path / 'pets/dog/0.png').unlink()
    fails(str(tmp_path / 'pets/dog'), 'holds no image', of=arguments)
    shutil.rmtree(tmp_path / 'pets')
    fails(str(tmp_path / 'pets'), '--data-root DIR or VET_DATA_ROOT', of=arguments)


def test_a_small_folder_trains(command, tmp_path):
    code, out, err = command(*folder_config(tmp_path))
    assert code == 0, err
    assert 'test accuracy' not in out and 'example.png' in out and '2 epochs' not in out


def test_checkpoint_of_another_architecture(fails, tmp_path):
    (tmp_path / 'vit.py').write_text(
        f"_base_ = [{str(QUICKSTART)!r}]\nmodel = dict(backbone=dict(_delete_=True, type='timm', "
        "name='vit_tiny_patch16_224', kwargs=dict(img_size=32, embed_dim=24, depth=1, num_heads=2)))\n"
    )
    save_file({'conv.weight': torch.zeros(3)}, 'other.safetensors')
    Path('cut.safetensors').write_bytes(b'12')
    option = 'model.backbone.checkpoint='
    fails(
        'other.safetensors',
        'another architecture',
        'conv.weight',
        of=train(f'{option}other.safetensors', config='vit.py'),
    )
    fails('cut.safetensors', 'cannot be read', of=train(f'{option}cut.safetensors', config='vit.py'))
    fails('none.safetensors', 'does not exist', of=train(f'{option}none.safetensors', config='vit.py'))


NO_NETWORK = dict(
    HTTP_PROXY='http://127.0.0.1:9',
    HTTPS_PROXY='http://127.0.0.1:9',
    http_proxy='http://127.0.0.1:9',
    https_proxy='http://127.0.0.1:9',
    no_proxy='',
    NO_PROXY='',
)


@pytest.mark.slow
def test_missing_weights_and_data_without_network(python, tmp_path):
    """The headline command on a machine that has nothing: one message that names what is missing and
    the two ways.
    """
    done = python(
        ROOT / 'tools/train.py',
        ROOT / 'configs/vitb16_lora_flowers.py',
        '--device',
        'cpu',
        **NO_NETWORK,
        VET_DATA_ROOT=str(tmp_path),
        HF_HOME=str(tmp_path / 'hf'),
    )
    assert done.returncode == 2 and done.stdout == ''
    (message,) = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert 'Traceback' not in done.stderr
    assert (
        str(tmp_path / 'flowers-102/jpg') in message
        and '--data-root DIR' in message
        and '(2) run once with a network' in message
    )


def test_missing_weights_without_network(fails, monkeypatch, tmp_path, no_pause):
    for name, value in NO_NETWORK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    (tmp_path / 'vit.py').write_text(
        f"_base_ = [{str(QUICKSTART)!r}]\nmodel = dict(backbone=dict(_delete_=True, type='timm', "
        "name='vit_base_patch16_224.orig_in21k'))\n"
    )
    fails(
        "the weights of 'vit_base_patch16_224.orig_in21k' are missing",
        'model.safetensors',
        '--cfg-options model.backbone.checkpoint=PATH',
        'or run once with a network',
        of=train(config='vit.py'),
    )


@pytest.mark.slow
def test_a_tuner_list_and_a_work_folder_to_resume(command, tmp_path):
    options = [
        '--device',
        'cpu',
        '--cfg-options',
        'train.max_epochs=1',
        'evaluation.before=False',
        'dataset.test=None',
        'evaluation.select=best',
        'evaluation.every=5',
        'model.backbone.type=DigitsViT',
        "model.tuners=[dict(type='LoRA', rank=1, at='mlp.fc1')]",
    ]
    code, out, err = command('train', ROOT / 'examples/own_tuner/config.py', '--work-dir', 'work', *options)
    assert code == 0, err
    assert json.loads(Path('work/config.json').read_text())['model']['tuners'] == [
        dict(type='LoRA', rank=1, at='mlp.fc1')
    ]
    summary = json.loads(Path('work/summary.json').read_text())
    assert summary['selected'].startswith('epoch 1, the best on 60 images') and summary['selected'] in out
    code, out, err = command('test', 'work', '--device', 'cpu', '--split', 'val')  # held out as in training
    assert code == 0 and json.loads(out)['accuracy'] == summary['validation'], err
    log = Path('work/log.jsonl').read_bytes()
    assert command('train', 'work/config.json', '--resume', 'work', '--device', 'cpu')[0] == 0
    assert Path('work/log.jsonl').read_bytes() == log


@pytest.mark.parametrize(
    'words',
    [
        ['train', LONG],
        ['test', LONG],
        ['fit', LONG],
        ['check', LONG],
        ['predict', '.', LONG],
        ['benchmark', LONG],
    ],
    ids=lambda words: words[0],
)
def test_a_name_that_no_file_system_takes_is_told(fails, words):
    fails(f"'{LONG}", 'cannot be used: File name too long. Give another path.', of=words)
