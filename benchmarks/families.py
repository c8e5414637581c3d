"""Tries every tuner on every family of networks. Also counts the attention that LoRA covers.

    python benchmarks/families.py                  # every family; writes docs/families.md
    python benchmarks/families.py --only 'swin*'   # some rows of the page again, by their names

A family is a kind of network of timm or torchvision: the networks of one file there, of all sizes, whose
modules have the same classes. The smallest network stands for the family. If the network's arguments allow
it, a stage has two blocks. Everything runs on torch's meta device, so the script computes no numbers and
needs no memory. A network that needs numbers runs on the CPU. A tuner runs if it attaches, and if one forward
and one backward give every trained parameter a gradient. Tuners may declare parameters without gradients. The
table gives the reason of each refusal.
"""

import argparse
import ast
import gc
import inspect
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
import torchvision
from torch import nn
from torchvision import models

import vet.builders  # noqa: F401  (fills the registries)
from vet.core.backbone import Backbone
from vet.core.flow import WEIGHTED
from vet.errors import UserError
from vet.registry import BACKBONES, TUNERS

VERSIONS = f'timm {timm.__version__} and torchvision {torchvision.__version__}'
PAGE = Path(__file__).parents[1] / 'docs' / 'families.md'
TRIED: dict[str, dict[str, Any]] = {
    'LinearProbe': {},
    'LoRA': dict(rank=1),
    'LoRA at weight': dict(type='LoRA', rank=1, at='weight'),
    'Adapter': dict(width=1),
    'AdaptFormer': dict(width=1),
    'VPT': dict(length=1),
    'SSF': {},
    'NormTune': {},
    'BitFit': {},
    'Partial': {},
}
SHOWN = ('attn', 'attn.qkv', 'attn.proj', 'mlp', 'norm', 'pool.qkv')
SIZES = (
    'test zepto atto femto pico nano xxxs xxs xs tiny t mini micro s small medium m plus b base l large '
    'xl xlarge huge h xxlarge giant g gigantic enormous'
).split()
NO_SIZE = re.compile(r'(patch|window|in|so|s|b|r|t|m|l|x|p|rw|a|v2l|xca)?\d+(\w|mf|gf|m|k|d|x\d+\w?|p\w)?')
# The layers of queries, keys and values, by the names that timm and torchvision give them: known beside vet.
PROJECTION = re.compile(
    r'.*\.(qkvs?|q|k|v|kv|w[qkv]|to_qkv|[qkv]_proj|qkv_proj|query|key|value|to_query|to_key|in_proj)'
    r'(\.(\d+|linear|conv|c|ln|proj))*'
)


@dataclass
class Row:
    """What the sweep found of one family. refused: by tuner, why."""

    source: str
    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    roles: dict[str, int] = field(default_factory=dict)
    in_blocks: float = 0.0  # share of the weights
    projections: int = 0
    covered: int = 0  # of the projections, by LoRA's default
    missed: str = ''
    refused: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    outside: str = ''  # the largest layers outside of the blocks

    @property
    def runs(self) -> list[str]:
        return [tuner for tuner in TRIED if tuner not in self.refused]


def candidates() -> Iterator[tuple[str, str, str]]:
    """(source, file, name): the smallest network first of each kind of name."""
    for file in timm.list_modules():
        kinds: dict[str, list[str]] = {}
        for name in timm.list_models(module=file):
            kinds.setdefault(_kind(name), []).append(name)
        for names in kinds.values():
            yield 'timm', file, min(names, key=_size)
    kinds = {}
    for name in models.list_models(module=models):
        kinds.setdefault(_kind(name), []).append(name)
    for names in kinds.values():
        yield 'torchvision', 'torchvision', min(names, key=_size)


def _kind(name: str) -> str:
    words = [word for word in name.split('_') if word not in SIZES and not NO_SIZE.fullmatch(word)]
    return re.sub(r'\d+\w?$', '', '_'.join(words)) or name


def _size(name: str) -> tuple:
    pixels = timm.get_pretrained_cfg(name).input_size[-1] if timm.is_model(name) else 0
    rank = min((SIZES.index(word) for word in name.split('_') if word in SIZES), default=len(SIZES))
    return pixels, rank, [int(number) for number in re.findall(r'\d+', name)][:2], name


def shrinkings(source: str, name: str) -> Iterator[dict[str, Any]]:
    """Arguments that make the network shallow, the best first; {} leaves it as it is."""
    if source == 'timm':
        made = inspect.getmodule(timm.model_entrypoint(name))
        classes = [
            found for found in vars(made).values() if inspect.isclass(found) and issubclass(found, nn.Module)
        ]
        defaults = [inspect.signature(found).parameters for found in classes]
        for key in ('depth', 'depths', 'layers'):
            for default in (found[key].default for found in defaults if key in found):
                if isinstance(default, int) and default > 2:
                    yield {key: 2}
                elif isinstance(default, (tuple, list)) and all(isinstance(count, int) for count in default):
                    yield {key: tuple(min(2, count) for count in default)}
    yield {}


def build(source: str, name: str, **kwargs: Any) -> Backbone:
    """On the meta device, or on the CPU where that fails."""
    config = dict(type=source, name=name, pretrained=False, kwargs=kwargs)
    with mock.patch('vet.core.backbone.weights_sha256', lambda state: ''), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            with torch.device('meta'):
                return BACKBONES.build(config)
        except (UserError, NotImplementedError, RuntimeError):
            if kwargs:
                raise
        return BACKBONES.build(config)


def shrunk(source: str, name: str) -> tuple[dict[str, Any], Backbone]:
    for kwargs in shrinkings(source, name):
        try:
            return kwargs, build(source, name, **kwargs)
        except UserError:
            if not kwargs:
                raise
    raise AssertionError


def kinds_of_modules(network: nn.Module) -> frozenset[str]:
    """What a network is made of: the classes of its modules, activations left out."""
    return frozenset(
        type(module).__name__
        for module in network.modules()
        if module is not network and list(module.parameters())
    )


def measure(source: str, name: str, kwargs: dict[str, Any], backbone: Backbone) -> Row:
    """Tries every tuner on one network."""
    started = time.perf_counter()
    network = backbone.network
    row = Row(source, name, kwargs, {role: len(names) for role, names in backbone.sites.roles().items()})
    whole = sum(parameter.numel() for parameter in network.parameters())
    blocks = [network.get_submodule(block) for block in backbone.sites.blocks]
    row.in_blocks = sum(parameter.numel() for block in blocks for parameter in block.parameters()) / whole
    row.outside = _outside(backbone, whole)
    layers = {name for name in backbone.sites._names() if PROJECTION.fullmatch(f'.{name}')}
    layers = {name for name in layers if name.endswith('in_proj') or backbone.sites._is_weight(name)}
    for tuner, config in TRIED.items():
        made = TUNERS.build(dict(dict(type=tuner), **config))
        try:
            made._attach(backbone)  # `attach` would also look for another place that works
        except UserError as error:
            row.refused[tuner] = str(error)
        except Exception as error:
            row.refused[tuner] = f'CRASH at attach: {type(error).__name__}: {error}'
        else:
            fault = _fault(backbone, made) if tuner == 'LoRA at weight' else ''
            if fault:
                row.refused[tuner] = fault
            if tuner == 'LoRA':
                tuned = {key.replace('/', '.') for key in made.deltas}
                row.projections, row.covered = len(layers), len(layers & tuned)
                row.missed = ', '.join(sorted(layers - tuned)[:2])
            made.detach()
        if tuner == 'LoRA' and 'LoRA' in row.refused:
            row.projections = len(layers)
            row.missed = ', '.join(sorted(layers)[:2])
    row.seconds = time.perf_counter() - started
    return row


def _outside(backbone: Backbone, whole: int) -> str:
    """The two largest layers that lie in no block, with their shares of all parameters."""
    named = backbone.network.named_modules()
    layers = [
        (module.weight.numel() / whole, name)
        for name, module in named
        if isinstance(module, WEIGHTED) and backbone.sites._block_of(name) is None
    ]
    return ', '.join(f'{name} {share:.0%}' for share, name in sorted(layers, reverse=True)[:2])


def _fault(backbone: Backbone, tuner: Any) -> str:
    """Why a forward and a backward fail, or which parameters get no gradient; '' where all is well."""
    try:
        like = next(backbone.network.parameters())
        loss = backbone.eval()(torch.zeros(2, 3, *backbone.preprocessing.size, device=like.device)).sum()
        names, parameters = zip(*tuner.trainable())
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    except Exception as error:
        return f'CRASH at run: {type(error).__name__}: {error}'
    left = [name for name, gradient in zip(names, found) if gradient is None]
    if left and not tuner.no_gradient:
        return f'CRASH: no gradient for {len(left)} parameters, such as {left[0]}'
    return ''


def families(only: str = '*') -> Iterator[tuple[str, str]]:
    """(source, name): the network that stands for each family."""
    seen: set[tuple[str, frozenset[str]]] = set()
    for source, file, name in candidates():
        if fnmatchcase(name, only):
            make = timm.create_model if source == 'timm' else models.get_model
            try:
                with torch.device('meta'):
                    network = make(name)
            except (NotImplementedError, RuntimeError):  # its constructor needs numbers
                network = make(name)
            kind = file, kinds_of_modules(network)
            if kind not in seen:
                seen.add(kind)
                yield source, name


def sweep(only: str = '*') -> Iterator[Row]:
    """A row for each family, as it is measured."""
    for source, name in families(only):
        try:
            kwargs, backbone = shrunk(source, name)
        except UserError as error:
            yield Row(source, name, refused=dict.fromkeys(TRIED, f'not built: {reason(str(error))}'))
        else:
            yield measure(source, name, kwargs, backbone)
            del backbone
            gc.collect()


def reason(error: str) -> str:
    """What an error says, without the names of one network."""
    for pattern, short in (
        (r"unknown role or module path '([^']+)'", r'no {}'),
        (r' needs (.+?), but ', 'needs {}'),
        (r'\w+ (has nothing to train)', '{}'),
        (r'not pooled features', 'gives tokens or maps, not pooled features'),
        (r'\((\w*Error: .+?)\)\. Choose', '{}'),
    ):
        found = re.search(pattern, error)
        if found:
            return re.sub(r'\(\d[\d, ]*\)', '(…)', short.format(*found.groups()))[:120]
    return error.partition('. ')[0][:120]


def page(rows: list[Row]) -> str:
    """docs/families.md: a summary, the families that LoRA does not cover, and a row for each family."""
    reasons = list(dict.fromkeys(reason(error) for row in rows for error in row.refused.values()))
    with_attention = [row for row in rows if row.projections]
    covered = [row for row in with_attention if row.covered == row.projections]
    pooling = [row.name for row in rows if 'pool.qkv' in row.roles and 'attn.qkv' not in row.roles]
    runs_on = Counter(tuner for row in rows for tuner in row.runs)
    lines = [
        '# Families of networks, and the tuners that run on them',
        '',
        'This page says which tuners run on which networks. `python benchmarks/families.py` writes the page. '
        f'{VERSIONS} have {len(rows)} families of networks. The networks of a family come from one file of '
        'the library, and have the same classes of modules. The page shows the smallest network of each '
        'family.',
        '',
        'Each tuner acts at its default places. `LoRA at weight` is `LoRA(at="weight")`. A tuner runs if '
        '`attach` accepts the network. `attach` runs the tuned network once.',
        '',
        '| tuner | runs on |',
        '|---|---|',
        *(f'| {tuner} | {runs_on[tuner]} of {len(rows)} |' for tuner in TRIED),
        '',
        f'{len(with_attention)} families have layers with names such as q, k and v. In {len(covered)} of '
        'these families, LoRA covers all of these layers.',
        '',
        *(
            f'- {row.name}: {row.covered} of {row.projections}. Missed: {row.missed}. {_why(row)}'
            for row in with_attention
            if row not in covered
        ),
        f'In {", ".join(pooling)}, attention only pools the features. There, give LoRA the place '
        '`at="pool.qkv"`.',
        '',
        '## Why a tuner refuses a network',
        '',
        'The text of a reason comes from the message of vet. After the text, the line counts the families '
        'for each tuner. An example: VPT adds tokens. So VPT needs attention that takes any number of '
        'tokens. Some networks have a table for a fixed number of tokens. The message names this table, such '
        "as 'window_size'.",
        '',
        *(f'{number}. {text}: {_counts(text, rows)}' for number, text in enumerate(reasons, 1)),
        '',
        '## Where the blocks hold less than 60 % of the weights',
        '',
        'Blocks are the repeated parts of a network. `at="weight"` means the layers within blocks. In these '
        'networks, many weights are outside of the blocks: in a wide layer behind the last block, or in '
        'layers between the stages. Each line has the share of the weights within blocks, and the largest '
        'layers outside of the blocks.',
        '',
        *(f'- {row.name}: {row.in_blocks:.0%}. {row.outside}' for row in rows if 0 < row.in_blocks < 0.6),
        '',
        '## Every family',
        '',
        'The columns:',
        '',
        '- **made with**: arguments that make the network smaller for this test;',
        '- **blocks**: the number of blocks, and their share of the weights;',
        '- **q, k, v**: the number of layers with such names that LoRA covers, and the number of all such '
        'layers;',
        '- **roles**: the roles of the network, each with its number of sites;',
        '- the tuners: ✓ if the tuner runs, else the number of the reason in the list above.',
        '',
        f'| library | network | made with | blocks | q, k, v | roles | {" | ".join(TRIED)} |',
        f'|{"---|" * (6 + len(TRIED))}',
    ]
    for row in rows:
        cells = [
            str(reasons.index(reason(row.refused[tuner])) + 1) if tuner in row.refused else '✓'
            for tuner in TRIED
        ]
        roles = ', '.join(f'{role} {row.roles[role]}' for role in SHOWN if role in row.roles)
        lines.append(
            f'| {row.source} | {row.name} | {row.kwargs or ""} | {row.roles.get("block", 0)}, '
            f'{row.in_blocks:.0%} | {row.covered}/{row.projections} | {roles} | {" | ".join(cells)} |'
        )
    return '\n'.join(lines) + '\n'


def _counts(text: str, rows: list[Row]) -> str:
    """On how many families each tuner is refused for this reason."""
    refused = Counter(tuner for row in rows for tuner in row.refused if reason(row.refused[tuner]) == text)
    return ', '.join(f'{tuner} {refused[tuner]}' for tuner in TRIED if refused[tuner])


def _why(row: Row) -> str:
    return f'LoRA is refused: {reason(row.refused["LoRA"])}.' if 'LoRA' in row.refused else ''


def read(text: str) -> list[Row]:
    """The rows of a page. `page` of them is the page again."""
    reasons = dict(re.findall(r'^(\d+)\. (.*): [^:]*$', text, re.MULTILINE))
    outside = dict(re.findall(r'^- (\S+): \d+%\. (.*)$', text, re.MULTILINE))
    missed = dict(re.findall(r'^- (\S+): \d+ of \d+\. Missed: (.*?)\. ', text, re.MULTILINE))
    rows = []
    for line in text.splitlines():
        if not line.startswith(('| timm |', '| torchvision |')):
            continue
        source, name, kwargs, blocks, layers, roles, *tried = (
            cell.strip() for cell in line.strip('|').split('|')
        )
        number, _, share = blocks.rstrip('%').partition(', ')
        row = Row(source, name, ast.literal_eval(kwargs or '{}'), dict(block=int(number)), int(share) / 100)
        row.covered, row.projections = map(int, layers.split('/'))
        for role, count in (entry.rsplit(' ', 1) for entry in roles.split(', ') if entry):
            row.roles[role] = int(count)
        row.refused = {tuner: reasons[cell] for tuner, cell in zip(TRIED, tried) if cell != '✓'}
        row.missed, row.outside = missed.get(name, ''), outside.get(name, '')
        if row.outside:  # a share below 60 % may be written as 60 %
            row.in_blocks = min(row.in_blocks, 0.599)
        rows.append(row)
    return rows


def again(rows: list[Row], only: str) -> Iterator[Row]:
    """Some of the rows of a page, measured again."""
    for row in rows:
        if fnmatchcase(row.name, only):
            made = build(row.source, row.name, **row.kwargs)
            yield measure(row.source, row.name, row.kwargs, made)


def worse(before: Row, after: Row) -> list[str]:
    """What worked, and no longer does."""
    lost = [f'{before.name}: {tuner} is refused' for tuner in before.runs if tuner not in after.runs]
    if after.covered < before.covered:
        lost.append(f'{before.name}: LoRA covers {after.covered} projections, not {before.covered}')
    return lost


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--only', metavar='PATTERN', help="names of networks on the page, such as 'swin*'; renews their rows"
    )
    args = parser.parse_args()
    before = read(PAGE.read_text()) if args.only else []
    if args.only and VERSIONS not in PAGE.read_text():
        parser.error(f'the page is not of {VERSIONS}; write the whole page, without --only')
    started = time.perf_counter()
    rows = []
    for row in again(before, args.only) if args.only else sweep():
        rows.append(row)
        refused = {tuner: reason(error) for tuner, error in row.refused.items()}
        print(
            f'{row.seconds:5.1f} s  {row.name}  q, k, v {row.covered}/{row.projections}  {refused or ""}',
            flush=True,
        )
    print(f'{len(rows)} families in {time.perf_counter() - started:.0f} s')
    measured = {(row.source, row.name): row for row in rows}
    PAGE.write_text(page([measured.get((row.source, row.name), row) for row in before or rows]))


if __name__ == '__main__':
    main()
