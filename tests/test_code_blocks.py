"""Every block of code in README and docs/ runs here, or says above the block what is needed to run it.

A block of sh is a list of commands. A block of Python is a part of a config, or a program. `text` is no code.
"""

import ast
import dataclasses
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vet.config.read import read_settings
from vet.config.sections import Settings
from website.reference import help_of

ROOT = Path(__file__).parents[1]
CHINESE = ROOT / 'docs/zh.md'  # tests/test_translations.py: has the blocks of docs/index.md
PAGES = [ROOT / 'README.md', *sorted({*(ROOT / 'docs').rglob('*.md')} - {CHINESE})]
SECTIONS = {field.name for field in dataclasses.fields(Settings)}
BLOCK = re.compile(
    r'^(?:<!-- needs: (?P<needs>[\w ,]+) -->\n)?^```(?P<kind>.*)\n(?P<code>(?s:.*?))^```$', re.MULTILINE
)
NEEDS = {'a download', 'an account', 'a server', 'a cluster', 'several GPUs', 'several GPUs, and data'}
ELSEWHERE = {  # blocks that another test runs, by how they begin
    '# own_tuner.py': 'tests/test_examples.py',
    'import timm\nimport torch\nfrom peft': 'tests/library/test_peft_page.py',
    'import timm\nimport vet\n\nnet': 'tests/library/test_peft_page.py',
}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    kind: str
    needs: str
    code: str

    def __str__(self):
        return f'{self.page}:{self.line}'

    @property
    def is_config(self):
        """Whether the block only sets sections of a config."""
        nodes = ast.parse(self.code).body
        names = [node.targets[0] for node in nodes if isinstance(node, ast.Assign)]
        known = set(SECTIONS) | {'_base_'}
        return len(names) == len(nodes) and all(
            isinstance(name, ast.Name) and name.id in known for name in names
        )


def read_blocks():
    found = []
    for page in PAGES:
        text = page.read_text()
        for one in BLOCK.finditer(text):
            line = text[: one.start()].count('\n') + 1
            name = str(page.relative_to(ROOT))
            found.append(Block(name, line, one['kind'], one['needs'] or '', one['code']))
    return found


BLOCKS = read_blocks()
PYTHON = [block for block in BLOCKS if block.kind == 'python']
CONFIGS = [block for block in PYTHON if block.is_config]
PROGRAMS = [
    block
    for block in PYTHON
    if not block.is_config and not block.needs and not block.code.startswith(tuple(ELSEWHERE))
]
SHELL = [block for block in BLOCKS if block.kind == 'sh']


def commands(block):
    """The words of each command of a block."""
    lines = block.code.replace('\\\n', ' ').splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_every_block_has_a_kind_and_a_reason():
    assert {block.kind for block in BLOCKS} <= {'python', 'sh', 'text', 'json'}
    assert [str(block) for block in BLOCKS if not block.kind] == []
    assert {block.needs for block in BLOCKS} - {''} <= NEEDS
    fences = sum(page.read_text().count('\n```') for page in PAGES)
    assert fences == 2 * len(BLOCKS)


def test_most_blocks_run():
    blocks = [block for block in BLOCKS if block.kind in ('python', 'sh')]
    assert len([block for block in blocks if not block.needs or block in CONFIGS]) > len(blocks) / 2


@pytest.mark.parametrize('block', CONFIGS, ids=str)
def test_a_part_of_a_config_is_read(block):
    found = {}
    for node in ast.parse(block.code).body:
        exec(ast.unparse(node), found)  # a later line of a block may show another value of the same section
        config = {'dataset': {}, 'model': {}} | {name: found[name] for name in SECTIONS if name in found}
        backbone = {'type': 'DigitsViT', **config['model'].get('backbone', {})}
        read_settings({**config, 'model': {**config['model'], 'backbone': backbone}})


@pytest.mark.parametrize('block', SHELL, ids=str)
def test_the_options_of_each_command_exist(block):
    for words in commands(block):
        if words[0] == 'vet':
            text = help_of(words[1])
            options = [word.partition('=')[0] for word in words[2:] if word.startswith('--')]
            assert [option for option in options if not re.search(rf'{option}\b', text)] == [], words


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A folder with what the pages name: photos, a run on them, and the configs of the checkout."""
    folder = tmp_path_factory.mktemp('world')
    (folder / 'configs').symlink_to(ROOT / 'configs')
    from sklearn.datasets import load_digits

    images, numbers = load_digits(return_X_y=True)
    for label, name in enumerate(('daisy', 'rose', 'tulip')):
        for split in ('train', 'test'):
            (folder / 'flowers102' / split / name).mkdir(parents=True)
        (folder / 'photos' / name).mkdir(parents=True)
        for place, index in enumerate(np.flatnonzero(numbers == label)[:12]):
            image = Image.fromarray((images[index].reshape(8, 8) * 15).astype(np.uint8)).convert('RGB')
            image.save(folder / 'photos' / name / f'{place}.png')
            image.save(
                folder / 'flowers102' / ('test' if place % 3 == 2 else 'train') / name / f'{place}.png'
            )
    for name in ('photo.jpg', 'image.jpg', 'digit.png'):
        image.save(folder / name)
    from vet import build_trainer

    data = {
        split: dict(type='ImageFolder', path=str(folder / 'flowers102'), split=split)
        for split in ('train', 'test')
    }
    trainer = build_trainer(
        model=dict(
            model=dict(backbone=dict(type='DigitsViT'), tuners=[dict(type='LoRA', rank=4)]),
            dataset=data,
            train=dict(max_epochs=2, dataloader=dict(workers_per_gpu=0)),
            evaluation=dict(dataloader=dict(workers_per_gpu=0)),
        ),
        work_dir=folder / 'RUN',
        data_root=folder,
        device='cpu',
    )
    trainer.train()
    image.save(folder / 'RUN/example.png')  # which `vet train` writes
    for name in ('MODEL_FOLDER', 'work/flowers', 'work/cars'):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(folder / 'RUN/output')
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('block', [block for block in SHELL if not block.needs], ids=str)
def test_the_commands_of_a_page_run(block, world, monkeypatch, capsys):
    for words in commands(block):
        if words[0] == 'torchrun':
            subprocess.run([sys.executable, '-m', 'torch.distributed.run', *words[1:]], check=True)
            continue
        assert words[0] == 'vet', words
        monkeypatch.setattr(sys, 'argv', [' '.join(words[:2]), *words[2:]])
        try:
            importlib.import_module(f'vet.cli.{words[1]}').main()
        except SystemExit as exit:
            assert not exit.code, (words, capsys.readouterr().err)


@pytest.fixture
def world(made, tmp_path, monkeypatch):
    """A copy of the folder for one block, which is the working directory."""
    folder = tmp_path / 'world'
    shutil.copytree(made, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def given():
    """What a reader has before a program of a page begins."""
    import timm
    import torch

    import vet
    from vet import pipeline

    torch.manual_seed(0)
    net = timm.create_model('vit_tiny_patch16_224', num_classes=5)
    image = Image.open('photo.jpg')
    return dict(
        vet=vet,
        pipeline=pipeline,
        net=net,
        images=torch.randn(2, 3, 224, 224),
        two_images=torch.randn(2, 3, 224, 224),
        labels=torch.tensor([0, 1]),
        image=image,
        one=image,
        two=image,
        three=image,
    )


@pytest.mark.slow
@pytest.mark.parametrize('block', PROGRAMS, ids=str)
def test_a_program_of_a_page_runs(block, world):
    Path('trial').mkdir()
    for name in ('first', 'trial/tuned'):  # runs of commands above the program
        Path(name).symlink_to(world / 'RUN')
    exec(compile(block.code, str(block), 'exec'), given())
