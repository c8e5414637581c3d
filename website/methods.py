"""One page for each tuner, and a list of all: from the tuner's class, its edits and result files."""

import functools
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import latex2mathml.converter
import timm
import torch
import yaml

from vet.arguments import arguments_of, text_of
from vet.core.tuner import Tuner
from vet.errors import UserError
from vet.registry import BACKBONES, TUNERS
from website.drawing import drawing, edits
from website.reference import escaped, prose

ROOT = Path(__file__).parents[1]
EQUATIONS = yaml.safe_load((ROOT / 'website/equations.yaml').read_text(encoding='utf-8'))
COLUMNS = ('name', 'computes', 'paper', 'edit', 'merges', 'parameters', 'config')
NETWORK = 'deit_tiny_patch16_224'  # of the counts and the drawings, as of the measured rows
SMALL = {  # networks of random weights, on which each tuner is tried
    'ViT': dict(
        name='vit_tiny_patch16_224',
        kwargs=dict(img_size=32, patch_size=8, embed_dim=96, depth=2, num_heads=2),
    ),
    'Swin': dict(
        name='swin_tiny_patch4_window7_224',
        kwargs=dict(img_size=32, embed_dim=96, depths=(2, 1), num_heads=(2, 2), window_size=4),
    ),
    'ConvNeXt': dict(name='convnext_atto', kwargs=dict(depths=(1, 1, 1, 1), dims=(96, 96, 192, 192))),
    'ResNet': dict(name='resnet10t', kwargs={}),
    'MobileNetV3': dict(name='mobilenetv3_small_050', kwargs={}),
}


@dataclass(frozen=True)
class Facts:
    """What a tuner with its defaults is on DeiT-Tiny."""

    drawing: str
    numbers: int
    places: str
    coverage: str
    merges: bool


def own() -> list[str]:
    """The names of vet's own tuners."""
    return [name for name in TUNERS.names() if TUNERS.find(name).__module__.startswith('vet.')]


def pages() -> dict[str, str]:
    """{page: its Markdown}"""
    made = {f'methods/{name}.md': page(name) for name in own()}
    return {'methods/index.md': index(), **made}


def page(name: str) -> str:
    """The page of a tuner."""
    facts = facts_of(name)
    parts = [
        f'# {name}',
        math(EQUATIONS[name]) if name in EQUATIONS else escaped(rows()[name][0]['computes']),
        f'<div class="drawing" markdown="0">{facts.drawing}</div>',
        f'The drawing shows {name} with its default places on DeiT-Tiny. {facts.places}',
        grid(['', f'{name} on DeiT-Tiny, with its defaults'], [list(row) for row in summary(name, facts)]),
        '## What it computes',
        prose(text_of(TUNERS, name)),
        '## Arguments',
        arguments(name),
        '## A config',
        config(name),
        '## Where it runs',
        families(name),
        '## Measured',
        measured(name),
    ]
    return '\n\n'.join(parts)


def summary(name: str, facts: Facts) -> list[tuple[str, str]]:
    """The facts at the head of a page."""
    row = rows()[name][0]
    return [
        ('source', paper(row['paper'])),
        ('edit', row['edit']),
        ('merges into plain weights', 'yes' if facts.merges else 'no'),
        ('trained numbers', f'{facts.numbers:,}, without the head'),
        ('reaches', facts.coverage or '-'),
    ]


def config(name: str) -> str:
    """One config, the same in Python, and what vet knows about good settings."""
    variants = [
        [row['name'], escaped(row['computes']), row['parameters'], row['config']] for row in rows()[name]
    ]
    shown = next(iter(re.findall(r'`(dict\(type=[^`]*)`', rows()[name][0]['config'])))
    call = re.sub(r"dict\(type='(\w+)'(?:, )?", r'vet.\1(', shown)
    tuner = TUNERS.find(name)
    lines = [
        f"```python\nmodel = dict(\n    backbone=dict(type='DigitsViT'),\n    tuners=[{shown}],\n)\n```",
        f'In your own loop: `tuned = vet.tune(net, {call})`. For a folder of photos: '
        f'`vet fit photos/ --tuner {name}`.',
        grid(['form', 'computes', 'parameters', 'config'], variants),
    ]
    if tuner.candidates != ({},) or tuner.learning_rates:
        tried = ', '.join(f'`{arguments!r}`' for arguments in tuner.candidates if arguments)
        low, high = tuner.learning_rates
        lines.append(
            f'`vet tune` tries {tried or "the defaults"}, and learning rates from {low:g} to {high:g}.'
        )
    recipes = presets(name)
    if recipes:
        lines.append('Configs that use it: ' + ', '.join(f'`{path}`' for path in recipes) + '.')
    return '\n\n'.join(lines)


@functools.cache
def rows() -> dict[str, list[dict[str, str]]]:
    """{tuner: its rows in docs/tuners.md}"""
    text = (ROOT / 'docs/tuners.md').read_text(encoding='utf-8').partition('## Measured')[0]
    found: dict[str, list[dict[str, str]]] = {name: [] for name in own()}
    for line in text.replace('\\|', '∣').splitlines():
        cells = [cell.strip().replace('∣', '\\|') for cell in line.strip('|').split(' | ')]
        name = cells[0].partition(',')[0]
        if len(cells) == len(COLUMNS) and name in found:
            found[name].append(dict(zip(COLUMNS, cells)))
    return found


@functools.cache
def sections() -> dict[str, list[str]]:
    """{heading of docs/tuners.md: its tuners}"""
    found: dict[str, list[str]] = {}
    for section in (ROOT / 'docs/tuners.md').read_text(encoding='utf-8').split('\n## ')[1:]:
        names = dict.fromkeys(re.findall(r'^\| (\w+)(?:,| \|)', section, re.MULTILINE))
        listed = [name for name in names if name in own()]
        if listed:
            found.setdefault(section.splitlines()[0], listed)
    found.pop('Measured', None)
    return found


def paper(text: str) -> str:
    """A source, with links to arXiv and OpenReview."""
    linked = re.sub(r'\b(?:arXiv:)?(\d{4}\.\d{5})', r'[arXiv:\1](https://arxiv.org/abs/\1)', text)
    return re.sub(
        r'ICLR 2025, (\w+)', r'[ICLR 2025, \1](https://openreview.net/forum?id=\1)', linked
    ).replace("ModelScope's", 'the adapter of ModelScope')


def math(latex: str) -> str:
    """MathML, which browsers show without a script."""
    made = latex2mathml.converter.convert(latex, display='block')
    return f'<div markdown="0">{made}</div>'


def arguments(name: str) -> str:
    """The table of arguments: default, and what is allowed."""
    found = arguments_of(TUNERS, name)
    if not found:
        return f'{name} has no arguments.'
    lines = [[f'`{one.name}`', f'`{one.default_text}`', escaped('; or '.join(one.allowed))] for one in found]
    return grid(['argument', 'default', 'allowed'], lines)


def families(name: str) -> str:
    """On which of five small networks the tuner attaches. The page of families has more."""
    lines = []
    for family, network in small().items():
        try:
            tuner = build(name)
            tuner.attach(network)
            tuner.detach()
            lines.append([family, 'yes', ''])
        except UserError as error:
            lines.append([family, 'no', escaped(' '.join(str(error).split()))])
    return (
        'vet tries the tuner with its defaults on five small networks when this site is built. A refusal '
        'shows what vet says. [Families](../families.md) has all families of networks.\n\n'
        + grid(['network', 'runs', 'what vet says'], lines)
    )


def measured(name: str) -> str:
    """The tuner's rows of benchmarks/results/tuners.json."""
    found = results()
    lines = []
    for run, one in found['runs'].items():
        types = [entry['type'] for entry in one['tuners']]
        if set(types) == {name}:
            accuracy = f'{100 * one["accuracy"]:.1f}'
            kept = f'{one["saved_bytes"] / 1e6:.0f}'
            lines.append([run, accuracy, f'{one["parameters"]:,}', f'{one["seconds"]:.3f}', kept])
    if not lines:
        return f'{name} was not measured yet.'
    settings = found['settings']
    return (
        grid(['run', 'accuracy, %', 'trained numbers', 's / step', 'kept for backward, MB'], lines)
        + f'\n\nDeiT-Tiny, a part of CIFAR-100 at {settings["pixels"]} pixels, {settings["epochs"]} epochs, '
        'one seed, one learning rate for all methods. Small differences mean nothing. '
        '[Tuners](../tuners.md#measured) has all rows and their conditions.'
    )


def results() -> dict[str, Any]:
    return json.loads((ROOT / 'benchmarks/results/tuners.json').read_text(encoding='utf-8'))


def presets(name: str) -> list[str]:
    """The configs of the checkout that name the tuner, or its short form."""
    tuner = TUNERS.find(name)
    texts = [f"type='{name}'"]
    if tuner.length_key and 'length_key' in vars(tuner):
        texts.append(f'{tuner.length_key[0]}=')
    named = re.compile('|'.join(map(re.escape, texts)))
    paths = sorted(ROOT.glob('configs/*.py'))
    return [f'configs/{path.name}' for path in paths if named.search(path.read_text(encoding='utf-8'))]


def build(name: str) -> Tuner:
    torch.manual_seed(0)
    return TUNERS.build(dict(type=name))


@functools.cache
def facts_of(name: str) -> Facts:
    """The tuner, attached to DeiT-Tiny for a moment."""
    network = large()
    tuner = build(name)
    tuner.attach(network)
    try:
        numbers = sum(parameter.numel() for _, parameter in tuner.trainable())
        coverage = str(tuner.coverage()) if tuner.reaches_features() else ''
        depth = len(network.sites.blocks)
        return Facts(drawing(tuner, depth), numbers, places(tuner), coverage, tuner.mergeable)
    finally:
        tuner.detach()


def places(tuner: Tuner) -> str:
    """A sentence: which edits, at which modules."""
    counted: Counter[tuple[str, str]] = Counter()
    for kind, path, name in edits(tuner):
        module = re.sub(r'\.\d+(?=\.|$)', '.*', path) or 'the whole network'
        counted[kind, f'{module}.{name}'.rstrip('.')] += 1
    if not counted:
        return 'No module is edited.'
    by_kind: dict[str, list[str]] = {}
    for (kind, module), number in counted.items():
        shown = module if ' ' in module else f'`{module}`'
        by_kind.setdefault(kind, []).append(f'{shown} ({number})')
    return 'The edits: ' + '; '.join(f'{kind} at {", ".join(found)}' for kind, found in by_kind.items()) + '.'


@functools.cache
def large() -> Any:
    """DeiT-Tiny of random weights. It takes images of any size, so that BorderPrompt runs, too."""
    sizes = dict(dynamic_img_size=True, dynamic_img_pad=True)
    return BACKBONES.build(dict(type='timm', name=NETWORK, pretrained=False, kwargs=sizes))


@functools.cache
def small() -> dict[str, Any]:
    made = {}
    for family, network in SMALL.items():
        made[family] = BACKBONES.build(
            dict(type='timm', pretrained=False, preprocessing=dict(size=32), **network)
        )
    return made


def index() -> str:
    """All methods, by the headings of docs/tuners.md."""
    parts = [
        '# Methods',
        f'{len(own())} methods. Each has a page with its equation, a drawing of where it acts, its '
        'arguments, its count, and what was measured. [Which method?](../choose.md) helps to choose. '
        '[Tuners](../tuners.md) lists all variants. '
        f'The drawings and counts are those of {NETWORK} of timm {timm.__version__}.',
    ]
    for title, names in sections().items():
        lines = []
        for name in names:
            row = rows()[name][0]
            facts = facts_of(name)
            lines.append(
                [
                    f'[{name}]({name}.md)',
                    escaped(row['computes']),
                    row['edit'],
                    row['merges'],
                    f'{facts.numbers:,}',
                ]
            )
        parts += [f'## {title}', grid(['method', 'computes', 'edit', 'merges', 'numbers, DeiT-Tiny'], lines)]
    return '\n\n'.join(parts)


def grid(headers: list[str], lines: list[list[str]]) -> str:
    """A table of Markdown."""
    return '\n'.join(
        [
            f'| {" | ".join(headers)} |',
            '|---' * len(headers) + '|',
            *(f'| {" | ".join(line)} |' for line in lines),
        ]
    )
