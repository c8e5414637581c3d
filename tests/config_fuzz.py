"""The config fuzz: mutations of all shipped configs, each tried as far as a few training steps on small
stand-ins.

    python -m tests.config_fuzz            # prints how many were tried, refused and accepted, and each fault
    python -m tests.config_fuzz --list     # also prints what was accepted and what was refused

Random mutations set, delete, rename, wrap and move values anywhere in a config. A random mutation may be
refused or accepted. Targeted mutations are values that no person can mean. A targeted mutation must be
refused by a UserError. A traceback (any other exception) and a hang are faults of both.
"""

import argparse
import copy
import inspect
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from safetensors.numpy import save_file

from vet.builders import build_trainer
from vet.config import load_config, read_settings
from vet.datasets.base import ImageDataset, resolve_split
from vet.errors import UserError
from vet.registry import DATASETS, TUNERS

CONFIGS = sorted((Path(__file__).parents[1] / 'configs').glob('*.py'))
SECONDS = 120  # of the processor: a mutation that takes more hangs
WAITS = 1200  # seconds of the clock: a mutation that waits longer hangs
MEMORY = 2 << 30  # bytes that the process that tries mutations may take, beside what it has at the start
NAN, INF = float('nan'), float('inf')
# what FuzzData stands in for
DATA = ('Flowers102', 'CIFAR100', 'CUB200', 'NABirds', 'StanfordCars', 'StanfordDogs')
EMBEDDINGS = 'embeddings.safetensors'  # the file that the configs of CLIP name


@dataclass(frozen=True)
class Mutation:
    """What is changed in which config: `do` sets, deletes, renames, wraps or moves; `by` tells whether
    by cfg_options.
    """

    config: str
    path: tuple
    do: str
    value: Any = None
    by_options: bool = False
    nonsense: bool = False

    def __str__(self) -> str:
        return f'{self.config}: {self.do} {".".join(map(str, self.path))} {_short(self.value)}{" (option)" * self.by_options}'


@dataclass(frozen=True)
class Outcome:
    mutation: Mutation
    kind: str  # 'refused', 'accepted', 'traceback', 'crash' or 'hang'
    text: str = ''


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = 'a deep value'
    return text if len(text) <= 80 else f'{text[:77]}…'


# Stand-ins ---------------------------------------------------------------------------------------------------------


class FuzzData(ImageDataset):
    """5 classes of 4 images of 8 x 8, with official splits, in place of data that is not at hand."""

    def __init__(self, root: str | Path = 'data', split: str = 'train', download: bool = False):
        samples = []
        for part in resolve_split(split, ('train', 'val', 'test'), 'FuzzData'):
            draw = np.random.default_rng(sum(map(ord, part)))
            noise = draw.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
            samples += [(image, i % 5) for i, image in enumerate(noise)]
        super().__init__(map(str, range(5)), samples)


def register_data() -> None:
    """Makes FuzzData a dataset that configs can name."""
    DATASETS.register_module(module=FuzzData, force=True)


def make_files(root: Path) -> None:
    """The files that some configs read: two seed images a class, two streets a split, VTAB's CIFAR-100, and
    the embeddings of FuzzData's classes.
    """
    for folder in (
        'jellyfish-mushroom/train/jellyfish',
        'jellyfish-mushroom/train/mushroom',
        'jellyfish-mushroom/test/jellyfish',
        'jellyfish-mushroom/test/mushroom',
        'goldfish/goldfish',
    ):
        _gray_images(root / 'seed-images' / folder, 20)
    for split in ('train', 'val', 'test'):
        _gray_images(root / 'camvid' / split / 'images', 20)
        for number in range(2):
            mask = np.full((16, 16), 3 * number, np.uint8)
            _save(root / 'camvid' / split / 'masks' / f'{number}.png', mask)
    home = root / 'vtab-1k' / 'cifar'
    for name in ('train800', 'val200', 'test'):
        _gray_images(home / 'images' / name, len(name))
        (home / f'{name}.txt').write_text(f'images/{name}/0.png 0\nimages/{name}/1.png 1\n')
    both = (home / 'train800.txt').read_text() + (home / 'val200.txt').read_text()
    (home / 'train800val200.txt').write_text(both)
    vectors = np.random.default_rng(0).normal(size=(5, 1000)).astype(np.float32)
    save_file({str(k): vector for k, vector in enumerate(vectors)}, root / EMBEDDINGS)


def _gray_images(folder: Path, darkest: int) -> None:
    for i in range(2):
        _save(folder / f'{i}.png', np.full((16, 16, 3), 40 * i + darkest, np.uint8))


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def stand_in(config: dict[str, Any], root: Path) -> None:
    """Puts small networks and small data in the place of those that a mutation left as they were."""
    model = config.get('model')
    backbone = model.get('backbone') if isinstance(model, dict) else None
    head = model.get('head') if isinstance(model, dict) else None
    if isinstance(head, dict) and head.get('file') == EMBEDDINGS:
        head['file'] = str(root / EMBEDDINGS)
    if isinstance(head, dict) and head.get('shots') == 16:
        head['shots'] = 2
    if isinstance(backbone, dict):
        name, kind, kwargs = backbone.get('name'), backbone.get('type'), backbone.get('kwargs') or {}
        if kind in ('timm', 'torchvision'):
            backbone.setdefault('pretrained', False)
        if (
            kind == 'timm'
            and isinstance(name, str)
            and name.startswith(('vit_', 'deit_'))
            and isinstance(kwargs, dict)
        ):
            small = dict(img_size=32, embed_dim=48, num_heads=3)
            backbone.update(name='deit_tiny_patch16_224', kwargs={**small, **kwargs})
        if kind == 'timm' and name == 'swin_large_patch4_window7_224.ms_in22k' and isinstance(kwargs, dict):
            small = dict(embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2))
            backbone.update(name='swin_tiny_patch4_window7_224', kwargs={**small, **kwargs})
        if kind == 'torchvision' and name in ('resnet50', 'vgg19'):
            backbone['name'] = {'resnet50': 'resnet18', 'vgg19': 'squeezenet1_1'}[name]
            if backbone.get('weights') == 'IMAGENET1K_V2':
                backbone['weights'] = 'IMAGENET1K_V1'
        if name in ('mobilenetv2_100', 'resnet50', 'vgg19', 'alexnet') and isinstance(
            backbone.get('preprocessing', {}), dict
        ):
            backbone['preprocessing'] = {'size': 64, **backbone.get('preprocessing', {})}
    for section in ('train', 'evaluation'):
        steps = config.get(section, {}).get('transform') if isinstance(config.get(section), dict) else None
        for step in steps if isinstance(steps, list) else []:
            if isinstance(step, dict) and step.get('size') == [224, 224]:
                step['size'] = [32, 32]
    data = config.get('dataset')
    _small_data(data)
    if isinstance(data, dict) and data.get('train') == data.get('test') and 'test' in data:
        data['test'] = None  # of a config that shows how the training images are learned
    for section in ('train', 'evaluation'):
        loader = config.get(section, {}).get('dataloader') if isinstance(config.get(section), dict) else None
        if isinstance(loader, dict) and loader.get('workers_per_gpu') in (2, 4):
            loader['workers_per_gpu'] = 0


def _small_data(entry: Any) -> None:
    if isinstance(entry, dict):
        if entry.get('type') in DATA:
            entry['type'] = 'FuzzData'
        if entry.get('type') == 'FewShot' and entry.get('shots') == 16:
            entry['shots'] = 2
        for value in entry.values():
            _small_data(value)


# Mutations ---------------------------------------------------------------------------------------------------------


def complete(path: Path) -> dict[str, Any]:
    """A config with its defaults, as plain values, so that a mutation can reach each setting."""
    config = load_config(path)
    settings = read_settings(config).to_dict()
    settings['train']['lr_scheduler']['T_max'] = None
    if settings['train']['stages']:
        del settings['train']['max_epochs']
    return settings


def deep(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


VALUES = [
    -1,
    0,
    1,
    2,
    3,
    7,
    -5,
    10**9,
    10**12,
    10**400,
    0.0,
    0.5,
    1.5,
    -0.1,
    1e-45,
    1e30,
    NAN,
    INF,
    -INF,
    True,
    False,
    None,
    '',
    'x',
    'LoRA',
    '1',
    '1e-3',
    'true',
    '\x1b[31mred',
    'ü',
    '../..',
    '.*',
    '(',
    'a' * 5000,
    [],
    [1],
    [0, 0],
    [[]],
    ['x'],
    [None],
    [1, 2, 3],
    [{}],
    {},
    {'type': 'LoRA'},
    {'type': None},
    {'x': 1},
    {'type': ''},
    {1: 2},
    {'type': 'Digits'},
    (1, 2),
    {1, 2},
    b'x',
    range(3),
    Path('x'),
    np.float32(0.1),
    np.int64(3),
    torch.tensor(1.0),
    object(),
    len,
    1j,
    deep(3000),
]


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value in a config: keys of dicts, and places in lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return ([path] if path else []) + [place for key, below in inner for place in places(below, (*path, key))]


def random_mutations(number: int, seed: int, part: int = 0, parts: int = 1) -> list[Mutation]:
    draw = random.Random(seed)
    configs = {path.stem: complete(path) for path in CONFIGS}
    found = []
    for _ in range(number):
        name = draw.choice(list(configs))
        path = draw.choice(places(configs[name]))
        do = draw.choices(['set', 'delete', 'rename', 'wrap', 'move', 'add'], [70, 8, 7, 5, 5, 5])[0]
        value = draw.randrange(len(VALUES)) if do in ('set', 'add') else None
        if do == 'move':
            value = draw.choice(places(configs[name]))
        if do in ('set', 'add'):
            value = VALUES[value]
        by_options = do == 'set' and draw.random() < 0.5
        found.append(Mutation(name, path, do, value, by_options))
    return found[part::parts]


# what no number of a config is
NUMBER = ['x', '', '1', True, False, NAN, INF, -INF, [], [1], {}, -1, 10**400, 1j]
COUNT = [*NUMBER, 1.5, 10**9, 10**12]
FLAG = [0, 1, 'yes', '', 'True', None, [], {}, 0.5]
TEXT = [0, 1.5, True, [], {}, '']
NONSENSE: dict[str, list] = {
    'train.max_epochs': [*COUNT, None],
    'train.accumulate': [*COUNT, 0, None],
    'train.log_every': [0, True, 'x', 1.5, None],
    'train.dataloader.batch_size_per_gpu': [*COUNT, 0, None],
    'train.dataloader.workers_per_gpu': [*COUNT, None, 5000],
    'evaluation.dataloader.batch_size_per_gpu': [*COUNT, 0],
    'evaluation.dataloader.workers_per_gpu': COUNT,
    'train.dataloader': [None, [], 3, ''],
    'evaluation.dataloader': [None, [], 3, ''],
    'train.mixup': [*NUMBER, None, 1e30, 10**9],
    'train.cutmix': [*NUMBER, None, 1e30],
    'train.label_smoothing': [*NUMBER, 1, 1.5, None],
    'train.ema': [*[v for v in NUMBER if v != 0], 1, 1.5, 0],
    'train.clip_norm': [*NUMBER, 0, 1e-45],
    'train.head_lr': [*NUMBER, 0, 1e9],
    'train.early_stop': [*COUNT, 0],
    'train.threads': [*COUNT, 0],
    'train.precision': [*TEXT, 'fp16', None],
    'train.compile': [0, 1, '', 'fast', [], None],
    'train.gradient_checkpointing': FLAG,
    'train.shortcuts': FLAG,
    'train.routes': [*TEXT, 'fastest', None],
    'train.cache_features': FLAG,
    'train.cache_images': FLAG,
    'train.deterministic': FLAG,
    'train.transform_on': [*TEXT, 'cuda', None],
    'train.transform': ['x', 3, [3], ['Resize'], None, {}],
    'train.stages': [
        'x',
        3,
        [3],
        {},
        None,
        [{}],
        [dict(epochs=0)],
        [dict(epochs=-1)],
        [dict(epochs=True)],
        [dict(epochs=10**9)],
        [dict(epochs=1, train='(')],
        [dict(epochs=1, train='')],
        [dict(epochs=1, train='no_such')],
        [dict(epochs=1, head_lr=0)],
        [dict(epochs=1, optimizer=3)],
        [dict(epochs=1, optimizer=dict(lr=-1))],
    ],
    'train.checkpoint.keep': [*COUNT, 0, None],
    'train.checkpoint.every_steps': [*COUNT, 0],
    'train.checkpoint.every_epochs': [*COUNT, 0, None],
    'train.lr_scheduler.type': [*TEXT, 'Cosine', None],
    'train.lr_scheduler.T_max': [*COUNT, 0],
    'train.lr_scheduler.warmup_epochs': [*NUMBER, 100, 10**9, None],
    'train.lr_scheduler.eta_min': [*NUMBER, 1.5, None],
    'train.optimizer': [None, [], 3, '', {'type': 'Nothing'}, {'type': 3}, {'type': None}],
    'train.optimizer.lr': [*NUMBER, 0, 1e9, 1e-45, None],
    'train.optimizer.weight_decay': [*NUMBER, 10, 1e9],
    'train.optimizer.betas': [
        3,
        'x',
        [],
        [0.9],
        [0.9, 1.0],
        [1.5, 0.9],
        [-1, 0.9],
        [NAN, 0.9],
        [True, 0.9],
        ['a', 'b'],
        [0.9, 0.99, 0.999],
    ],
    'train.optimizer.eps': [-1, NAN, INF, True, 'x', [], 10],
    'train.optimizer.amsgrad': [1, 'x', []],
    'evaluation.metrics': [
        3,
        [],
        [3],
        '',
        [''],
        ['nothing'],
        dict(type='accuracy'),
        [dict(type='accuracy')],
        ['accuracy', 'accuracy'],
    ],
    'evaluation.select': [*TEXT, 'first', None],
    'evaluation.holdout': [*NUMBER, 0, 1, None],
    'evaluation.every': [*COUNT, 0, None],
    'evaluation.before': FLAG,
    'evaluation.transform': ['x', 3, [3], {}, ['Resize'], []],
    'seed': [*NUMBER, 1.5, 10**12, 2**70, None],
    'model': [None, [], 3, '', {}],
    'dataset': [None, [], 3, ''],
    'train': [[], 3, ''],
    'evaluation': [[], 3, ''],
    'model.backbone': [None, [], 3, '', {}, {'type': ''}, {'type': None}, {'type': 'Nothing'}],
    'model.head': [
        None,
        [],
        3,
        '',
        {'type': 'Nothing'},
        dict(type='Linear', num_classes=0),
        dict(type='Linear', num_classes=-1),
        dict(type='Linear', num_classes=True),
        dict(type='Linear', num_classes='5'),
        dict(type='Linear', num_classes=7),
        dict(type='Linear', dropout=-0.1),
        dict(type='Linear', dropout=1),
        dict(type='Linear', dropout=1.5),
        dict(type='Linear', dropout=NAN),
        dict(type='Linear', dropout=True),
        dict(type='Linear', dropout='x'),
        dict(type='Linear', hidden=3),
        dict(type='MLP', hidden=0),
        dict(type='MLP', hidden=-1),
        dict(type='MLP', hidden=True),
        dict(type='MLP', hidden=10**9),
        dict(type='MLP', hidden='x'),
        dict(type='MLP', hidden=1.5),
        dict(type='MLP', dropout=2),
        dict(type='Linear', in_features=3),
    ],
    'model.tuners': [
        None,
        3,
        '',
        'LoRA',
        {},
        [3],
        ['LoRA'],
        [[]],
        [{}],
        [{'type': 'Nothing'}],
        [{'type': ''}],
        dict(type='LoRA'),
    ],
    'model.tasks': [[], 3, 'x', None, dict(a={}), {'': {}}],
    'model.shared': ['(', 3, None, True, ''],
    'model.finetune': FLAG,
    'dataset.train': [
        [],
        3,
        '',
        {},
        {'type': 'Nothing'},
        {'type': 3},
        dict(type='Digits', split='nothing'),
        dict(type='Digits', digits=[]),
        dict(type='Digits', digits=[1, 1]),
        dict(type='Digits', digits=[11]),
        dict(type='Digits', digits=3),
        dict(type='Digits', digits=['a']),
        dict(type='Digits', digits=None),
        dict(type='Digits', split=None),
        dict(type='MultiTask', tasks={}),
        dict(type='MultiTask', tasks=[]),
        dict(type='MultiTask', tasks={'a b': {}}),
        dict(type='MultiTask', tasks={'a': None}),
        dict(type='MultiTask', tasks={'a': 3}),
        dict(type='CSV', file='no.csv'),
        dict(type='ImageFolder', path=3),
        dict(type='ImageFolder', path='no'),
        dict(type='ImageFolder', path=None),
        dict(type='ImageFolder', path='seed-images/goldfish', classes=3),
        dict(type='ImageFolder', path='seed-images/goldfish', classes=[]),
        dict(type='ImageFolder', path='seed-images/goldfish', label_map=3),
        dict(type='ImageFolder', path='seed-images/goldfish', label_map=dict(goldfish='x')),
        dict(type='ImageFolder', path='seed-images/goldfish', label_map=dict(goldfish=-1)),
    ],
    'dataset.test': [[], 3, '', {}, {'type': 'Nothing'}],
    'dataset.val': [[], 3, '', {}, {'type': 'Nothing'}],
    'dataset.other': [3, dict(type='Digits')],
    'max_epochs': [1],
    'epochs': [3],
    'lr': [1e-3],
    'batch_size': [8],
    'optimizer.lr': [5],
    'optimizer': [dict(type='SGD')],
    'tuners': [[dict(type='LoRA')]],
    'lora_length': [4],
    'backbone.lora_length': [4],
    'learning_rate': [1e-3],
    'model.backbone.lora_length': [-1, True, 'x', 1.5, 10**9, [], [1], {}, NAN],
    'model.backbone.loro_length': [4],
}
OPTIMIZERS_NONSENSE = {
    'SGD': dict(
        momentum=[5, -1, True, NAN, 'x', 1],
        dampening=[-1, 5, True, 'x', NAN],
        nesterov=[1, 'x'],
        weight_decay=[-1, NAN, True],
    ),
    'RMSprop': dict(alpha=[-1, 2, True, NAN, 'x'], momentum=[5, -1, True], eps=[-1, NAN], centered=[1, 'x']),
    'Adam': dict(
        betas=[[0.9, 2], 0.9, [0.9]], eps=[-1, NAN], weight_decay=[-1, 50], lr=[True, -1, 0, NAN, 10**9]
    ),
    'Adagrad': dict(lr_decay=[-1, NAN, 5, True], initial_accumulator_value=[-1, NAN, True], eps=[-1]),
    'NAdam': dict(momentum_decay=[-1, NAN, 5, True]),
    'Adadelta': dict(rho=[-1, 2, NAN, True]),
    'LBFGS': dict(lr=[1.0]),
    'ASGD': dict(t0=[-1, NAN, True], alpha=[-1, NAN], lambd=[-1, NAN]),
    'Rprop': dict(etas=[[2, 3], [0.5], 'x'], step_sizes=[[-1, 1], 'x']),
    'Adamax': dict(betas=[[2, 2]], eps=[-1]),
    'RAdam': dict(betas=[[0.9, 1.0]]),
    'Muon': dict(momentum=[5]),
}
TRANSFORMS_NONSENSE = {
    'RandomResizedCrop': dict(
        size=[0, -1, True, 'x', 10**9, [1, 2, 3], [], NAN, 1.5],
        scale=[[2, 1], [-1, 1], 3, 'x', [NAN, 1], [0.1]],
        ratio=[[0, 1], 'x', [-1, 2], [NAN, 1]],
        interpolation=['x', 3, True],
    ),
    'RandomHorizontalFlip': dict(p=[-1, 2, True, 'x', NAN, [], None]),
    'RandomAffine': dict(degrees=[-1, 'x', True, NAN, [1, 2, 3], 10**9]),
    'Resize': dict(size=[0, -5, True, 'x', 10**9, [1, 2, 3], NAN], antialias=[3, 'x']),
    'CenterCrop': dict(size=[0, -1, True, 'x', 10**9]),
    'RandomCrop': dict(size=[0, -1, True, 'x'], padding=['x', True, NAN, 10**9]),
    'RandomRotation': dict(degrees=[-1, 'x', NAN]),
    'ColorJitter': dict(brightness=[-1, 'x', NAN, True], hue=[2, -1, NAN]),
    'RandAugment': dict(num_ops=[-1, True, 'x', 10**9], magnitude=[-1, 100, True, 'x']),
    'RandomErasing': dict(p=[-1, 2, NAN], scale=[[2, 1], 3]),
    'GaussianBlur': dict(kernel_size=[2, -1, True, 'x'], sigma=[[-1, 1], 'x', NAN]),
    'Normalize': dict(mean=[[0.5] * 3, 'x', []], std=[[1e-45] * 3, [0] * 3, [-1] * 3, 'x', [NAN] * 3, []]),
    'RandomGrayscale': dict(p=[-1, 2]),
    'Nothing': dict(p=[1]),
    'Compose': dict(transforms=[[3], [], 'x']),
    'Lambda': dict(lambd=['x', 3]),
    'Pad': dict(padding=[-100, 'x', True, 10**9]),
}


def of_plugin(tuner: str) -> list[dict[str, Any]]:
    """Entries of a tuner, each with one argument that no person can mean, by what the argument's
    default is.
    """
    found = []
    for name, parameter in inspect.signature(TUNERS.find(tuner)).parameters.items():
        default = parameter.default
        if isinstance(default, bool):
            values = [1, 'x', '', []]
        elif isinstance(default, int):
            values = (
                [-7, True, NAN, 'x', '', {}]
                + [1.5] * (name != 'target')  # AdaLoRA's average rank
                + ([] if name in ('seed', 'factor') else [0])
                + [10**9] * (name != 'seed')
            )
        elif isinstance(default, float):
            values = [-7.0, True, NAN, INF, '', [], {}, 'x'] + [0] * (name in ('scale', 'target'))
        elif name in ('at', 'outputs', 'target_modules'):
            values = [3, '', [], [3], [None], {}, 'no_such_role', 'block[', [['attn']]] + (
                [None] if name == 'at' else []
            )
        elif isinstance(default, str):
            values = [3, True, '', 'nothing', [], {}]
        else:
            values = [True, NAN, '', [], {}, -7]
        found += [{'type': tuner, name: value} for value in values]
    return found


def no_mutations() -> list[Mutation]:
    """Every config as it is: a value is set to itself."""
    return [Mutation(path.stem, ('seed',), 'set', 0) for path in CONFIGS]


def targeted_mutations(number: int, seed: int, part: int = 0, parts: int = 1) -> list[Mutation]:
    """A sample of the values that no person can mean: settings of all configs, and arguments of plugins
    on the quickstart.
    """
    draw = random.Random(seed)
    every = [
        Mutation('quickstart', tuple(path.split('.')), 'set', value, draw.random() < 0.5, True)
        for path, values in NONSENSE.items()
        for value in values
    ]
    for optimizer, options in OPTIMIZERS_NONSENSE.items():
        for option, values in options.items():
            every += [
                Mutation(
                    'quickstart',
                    ('train', 'optimizer'),
                    'set',
                    {'type': optimizer, 'lr': 1e-3, option: value},
                    nonsense=True,
                )
                for value in values
            ]
    for transform, options in TRANSFORMS_NONSENSE.items():
        for option, values in options.items():
            section = draw.choice(['train', 'evaluation']) if transform != 'Normalize' else 'evaluation'
            every += [
                Mutation(
                    'quickstart',
                    (section, 'transform'),
                    'set',
                    [{'type': transform, option: value}],
                    nonsense=True,
                )
                for value in values
            ]
    every += [
        Mutation('quickstart', ('model', 'tuners'), 'set', [entry], nonsense=True)
        for tuner in TUNERS.names()
        for entry in of_plugin(tuner)
    ]
    others = [path.stem for path in CONFIGS if path.stem != 'quickstart']
    elsewhere = [
        path
        for path in NONSENSE
        if path.startswith(('train.', 'evaluation.', 'seed')) and 'optimizer.betas' not in path
    ]
    every += [
        Mutation(draw.choice(others), tuple(path.split('.')), 'set', value, draw.random() < 0.5, True)
        for path in elsewhere
        for value in NONSENSE[path]
    ]
    return (draw.sample(every, number) if number < len(every) else every)[part::parts]


def mutated(config: dict[str, Any], mutation: Mutation) -> dict[str, Any]:
    """The config after a mutation that is not made by cfg_options."""
    config = copy.deepcopy(config)
    *above, last = mutation.path
    owner: Any = config
    for key in above:
        if isinstance(owner, dict) and not isinstance(owner.get(key), (dict, list)):
            owner[key] = {}
        owner = owner[key]
    if mutation.do == 'set':
        owner[last] = mutation.value
    elif mutation.do == 'delete':
        del owner[last]
    elif mutation.do == 'add':
        owner.append(mutation.value) if isinstance(owner, list) else owner.update(
            {f'{last}_': mutation.value}
        )
    elif mutation.do == 'rename':
        value = owner.pop(last)
        owner.append([value]) if isinstance(owner, list) else owner.update({str(last)[:-1]: value})
    elif mutation.do == 'wrap':
        owner[last] = [owner[last]]
    elif mutation.do == 'move':
        taken: Any = config
        for key in mutation.value:
            taken = taken[key]
        owner[last] = copy.deepcopy(taken)
    return config


# Trying ------------------------------------------------------------------------------------------------------------


def attempt(mutation: Mutation, configs: dict[str, dict[str, Any]], root: Path) -> tuple[str, str]:
    """Builds a trainer from the mutated config, and trains it for one epoch on the stand-ins."""
    folder = Path(tempfile.mkdtemp())
    try:
        options = None
        config = configs[mutation.config]
        if mutation.by_options:
            config, options = copy.deepcopy(config), {'.'.join(map(str, mutation.path)): mutation.value}
        else:
            config = mutated(config, mutation)
        stand_in(config, root)
        trainer = build_trainer(
            model=config, work_dir=folder / 'run', cfg_options=options, device='cpu', data_root=root
        )
        train = trainer.settings.train
        train.max_epochs = min(train.max_epochs, 1)
        for stage in train.stages:
            stage.epochs = 1
        train.max_epochs = len(train.stages) or train.max_epochs
        # what is accepted must not fill the machine
        for loader in (train.dataloader, trainer.settings.evaluation.dataloader):
            loader.workers_per_gpu, loader.batch_size_per_gpu = (
                min(loader.workers_per_gpu, 2),
                min(loader.batch_size_per_gpu, 8),
            )
        trainer.train()
        return 'accepted', ''
    except UserError as error:
        return 'refused', str(error)
    except Exception:
        return 'traceback', traceback.format_exc(limit=-6)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(1)


def _try_all(connection: Any, make: Callable[..., list[Mutation]], args: tuple, root: Path) -> None:
    """Of the process that tries: takes numbers of mutations, and gives what came of them."""
    os.setpgid(0, 0)  # what it starts ends with it
    own = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    set_threads = torch.set_num_threads
    torch.set_num_threads = lambda number: set_threads(min(number, 2))
    register_data()
    mutations, configs = make(*args), {path.stem: complete(path) for path in CONFIGS}
    while (number := connection.recv()) is not None:
        connection.send(attempt(mutations[number], configs, root))


def _answers(connection: Any, pid: int) -> bool:
    """Waits for an answer. False: the process has used too much processor time, or waits without an end."""
    begun, used = time.monotonic(), _processor_seconds(pid)
    while not connection.poll(5):
        if _processor_seconds(pid) - used > SECONDS or time.monotonic() - begun > WAITS:
            return False
    return True


def _processor_seconds(pid: int) -> float:
    """Of a process and its children. 0 if the process has ended."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system + times.children_user + times.children_system


def _end(process: Any) -> None:
    """Ends the process that tries, and the workers that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def run(make: Callable[..., list[Mutation]], *args: Any) -> list[Outcome]:
    """Tries the mutations that make(*args) gives, one after another, in a process of its own, whose memory is
    bounded.

    A hang or a crash ends the process, and another one goes on.
    """
    register_data()
    root = Path(tempfile.mkdtemp())
    make_files(root)
    context, process, outcomes = multiprocessing.get_context('forkserver'), None, []
    context.set_forkserver_preload(['tests.config_fuzz'])
    try:
        for number, mutation in enumerate(make(*args)):
            if process is None:
                here, there = context.Pipe()
                process = context.Process(target=_try_all, args=(there, make, args, root))
                process.start()
                there.close()
            here.send(number)
            try:
                answer = here.recv() if _answers(here, process.pid) else ('hang', '')
                outcomes.append(Outcome(mutation, *answer))
            except (EOFError, ConnectionError):
                outcomes.append(Outcome(mutation, 'crash', 'the process died'))
            if outcomes[-1].kind in ('hang', 'crash'):
                _end(process)
                process = None
        return outcomes
    finally:
        if process is not None:
            _end(process)
        shutil.rmtree(root, ignore_errors=True)


def faults(outcomes: list[Outcome]) -> list[Outcome]:
    """Tracebacks and hangs; and of targeted mutations what was accepted."""
    return [
        outcome
        for outcome in outcomes
        if outcome.kind in ('traceback', 'crash', 'hang')
        or outcome.kind == 'accepted'
        and outcome.mutation.nonsense
    ]


def shown(outcome: Outcome) -> str:
    """One line, with control characters escaped."""
    text = ' | '.join(outcome.text.strip().splitlines()[-3:]) if outcome.kind == 'traceback' else outcome.text
    return f'{outcome.kind}: {outcome.mutation} -> {text[-700:]}'.encode('unicode_escape').decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--random', type=int, default=1300)
    parser.add_argument('--targeted', type=int, default=800)
    parser.add_argument('--part', default='1/1', metavar='I/N', help='every N-th mutation, from the I-th')
    parser.add_argument(
        '--list', action='store_true', help='also print what was accepted, and what was refused'
    )
    args = parser.parse_args()
    part, parts = map(int, args.part.split('/'))
    for name, make, number in (
        ('targeted', targeted_mutations, args.targeted),
        ('random', random_mutations, args.random),
    ):
        outcomes = run(make, number, args.seed, part - 1, parts)
        counts = Counter(outcome.kind for outcome in outcomes)
        print(
            json.dumps(
                dict(
                    kind=name,
                    seed=args.seed,
                    part=args.part,
                    tried=len(outcomes),
                    **counts,
                    faults=len(faults(outcomes)),
                )
            )
        )
        for outcome in outcomes if args.list else faults(outcomes):
            print(shown(outcome), flush=True)


if __name__ == '__main__':
    sys.exit(main())
