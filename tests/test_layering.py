"""The import arrows: imports point one way between the rooms of vet, and plugins of one room never
import each other.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each room and the rooms it may import directly, itself always among them.
BASE = {
    'errors',
    'allowed',
    'near_paths',
    'patterns',
    'registry',
    'config',
    'torch_private',
    'targets',
    'shipped',
}
ENGINE = BASE | {'core', 'datasets', 'report', 'transforms', 'metrics', 'versions'}
ENGINE |= {
    'cache_folder',
    'explain',
    'hooks',
    'optimizers',
    'environment',
    'failures',
    'files',
    'lock',
    'log',
    'progress',
    'seeding',
}
# beside engine, not on top of it
HUB = BASE | {'core', 'transforms', 'versions', 'files', 'lock', 'log', 'offline'}
BUILDERS = ENGINE | HUB | {'engine', 'hub', 'changes', 'source'}
API = BUILDERS | {'builders', 'pipelines', 'escapes', 'terminal'}
ARROWS = {
    'errors': set(),
    'allowed': set(),
    'targets': {'errors'},
    'near_paths': set(),
    'patterns': {'errors'},
    'versions': set(),
    'torch_private': set(),
    'ahead': set(),
    'escapes': set(),
    'terminal': {'escapes'},
    'plugin_index': set(),
    'mmengine_parts': set(),
    'shipped': {'errors'},
    'log': {'terminal'},
    'offline': set(),
    'lock': set(),
    'cache_folder': {'lock'},
    'seeding': set(),
    'failures': {'errors'},
    'files': {'errors'},
    'progress': {'log'},
    'ray_cluster': {'errors'},
    'environment': {'torch_private'},
    'registry': {'errors', 'allowed', 'mmengine_parts', 'plugin_index'},
    'register': {'errors', 'registry'},
    'arguments': {'allowed', 'registry'},
    'config': {'errors', 'allowed', 'patterns', 'registry', 'arguments', 'mmengine_parts', 'shipped'},
    'changes': BASE | {'mmengine_parts'},
    'source': BASE | {'mmengine_parts', 'changes', 'core', 'files', 'hub'},
    'core': BASE | {'failures'},
    'backbones': BASE | {'core', 'offline'},
    'tuners': BASE | {'core'},
    'heads': BASE | {'core'},
    'objectives': BASE | {'core', 'metrics'},
    'losses': {'errors', 'allowed', 'registry', 'targets'},
    'samplers': {'errors', 'registry'},
    'hooks': {'errors', 'allowed', 'registry', 'config'},
    'optimizers': {'errors', 'allowed', 'registry'},
    'datasets': {'errors', 'allowed', 'registry', 'targets', 'log', 'offline', 'torch_private'},
    'transforms': {'errors', 'allowed', 'registry'},
    'metrics': {'errors', 'registry'},
    'report': BASE | {'core', 'datasets', 'escapes', 'metrics'},
    'explain': BASE | {'core', 'transforms'},
    'engine': ENGINE,
    'hub': HUB,
    'library': HUB | {'hub', 'backbones'},
    'own_backbone': HUB | {'hub', 'backbones', 'library'},
    'builders': BUILDERS | {'own_backbone'},
    'pipelines': BUILDERS | {'ahead', 'own_backbone'},
    'agreement': BUILDERS | {'pipelines'},
    'check': BASE | {'core', 'datasets', 'transforms', 'progress', 'report'},
    'fit': BUILDERS | {'builders', 'check'},
    'search': BUILDERS | {'builders', 'fit', 'ray_cluster', 'shipped'},
    'serve': API | {'explain', 'ray_cluster'},
    'compat': API,
    'benchmark': API | {'mmengine_parts', 'ray_cluster'},
    'cli': API | {'agreement', 'arguments', 'benchmark', 'check', 'explain', 'fit', 'search', 'serve'},
    '__main__': {'cli'},
    'tools': API | {'cli'},
    'benchmarks': API | {'backbones', 'benchmark', 'check', 'cli', 'search', 'serve', 'tools'},
}
# What several plugins of a room stand on, beside modules that register nothing.
SHARED = {'vet.backbones.timm': {'vet.backbones.digits', 'vet.backbones.network'}}
PLUGIN_ROOMS = (
    'backbones',
    'tuners',
    'heads',
    'objectives',
    'losses',
    'datasets',
    'transforms',
    'metrics',
    'samplers',
    'hooks',
    'optimizers',
)


def imports(source: str, module: str) -> set[str]:
    """The modules below vet (or tools) that `module` imports anywhere, functions and relative imports
    included.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                base = '.'.join(filter(None, [*module.split('.')[: -node.level], node.module]))
            found |= {
                f'{base}.{name.name}' if is_module(f'{base}.{name.name}') else base for name in node.names
            }
    return {name for name in found if name.split('.')[0] in ('vet', 'tools', 'benchmarks')}


def is_module(name: str) -> bool:
    path = ROOT / name.replace('.', '/')
    return path.is_dir() or path.with_suffix('.py').is_file()


def room(module: str) -> str:
    parts = module.split('.')
    return parts[1] if parts[0] == 'vet' and len(parts) > 1 else parts[0]


def registers(source: str) -> bool:
    return '.register_module(' in source


def wrong_arrows(source: str, module: str, is_plugin=None) -> list[str]:
    """What `module` imports against the arrows. is_plugin: whether a module registers plugins; read
    from its file.
    """
    is_plugin = is_plugin or (lambda name: registers((ROOT / (name.replace('.', '/') + '.py')).read_text()))
    own, wrong = room(module), []
    for name in sorted(imports(source, module) - {'vet', module}):
        if room(name) != own:
            if room(name) not in ARROWS[own]:
                wrong.append(f'{module} -> {name}')
        elif own in PLUGIN_ROOMS and is_plugin(name) and module not in SHARED.get(name, ()):
            wrong.append(f'{module} -> {name}, two plugins')
    return wrong


DOORS = (
    'vet.engine.fast',
    'vet.engine.feed',
    'vet.engine.saving',
)  # folders that are entered through their door.py alone


def past_the_door(source: str, module: str) -> list[str]:
    """The files that `module` imports of a folder with a door, from outside the folder."""
    return [
        f'{module} -> {name}'
        for name in sorted(imports(source, module))
        for folder in DOORS
        if f'{name}.'.startswith(f'{folder}.') and name != f'{folder}.door'
        if not module.startswith(f'{folder}.')
    ]


@cache
def modules() -> dict[str, Path]:
    """All but vet/__init__.py, which offers the public names."""
    files = [path for folder in ('vet', 'tools', 'benchmarks') for path in (ROOT / folder).rglob('*.py')]
    return {
        '.'.join(path.relative_to(ROOT).with_suffix('').parts): path
        for path in files
        if path != ROOT / 'vet/__init__.py' and path.name != '__init__.py' or path.read_text().strip()
    }


@pytest.mark.parametrize('module', sorted(set(modules()) - {'vet.__init__'}))
def test_imports_point_one_way(module):
    assert wrong_arrows(modules()[module].read_text(), module) == []


@pytest.mark.parametrize('module', sorted(name for name in modules() if name.startswith('vet.')))
def test_a_folder_with_a_door_is_entered_through_the_door(module):
    assert past_the_door(modules()[module].read_text(), module) == []


@pytest.mark.parametrize(
    'module, source, wrong',
    [
        ('vet.engine.made_up', 'from vet.engine.feed.batches import load', ['vet.engine.feed.batches']),
        ('vet.engine.made_up', 'from .fast import fp8', ['vet.engine.fast.fp8']),
        ('vet.cli.made_up', 'import vet.engine.feed', ['vet.engine.feed']),
        ('vet.engine.made_up', 'from vet.engine.fast.door import Tricks', []),
        ('vet.engine.fast.door', 'from vet.engine.fast.fp8 import products_in_fp8', []),
        ('vet.engine.fast.made_up', 'from vet.engine.feed.door import load', []),
    ],
)
def test_an_import_past_a_door_is_found(module, source, wrong):
    assert past_the_door(source, module) == [f'{module} -> {name}' for name in wrong]


def test_the_arrows_have_no_circle():
    def below(name, path=()):
        assert name not in path, path
        return {name}.union(*(below(inner, (*path, name)) for inner in ARROWS[name]))

    rooms = {room(module) for module in modules()} - {'__init__', 'vet'}
    assert rooms <= set(ARROWS)
    assert all(below(name) for name in ARROWS)


def arrows_within(top: str) -> tuple[set[str], set[tuple[str, str]]]:
    """The files and folders in a room, and who of them imports whom."""
    inside = [name for name in modules() if name.startswith(f'vet.{top}.') and not name.endswith('__init__')]
    arrows = {
        (module.split('.')[2], name.split('.')[2])
        for module in inside
        for name in imports(modules()[module].read_text(), module)
        if name.startswith(f'vet.{top}.')
    }
    return {name.split('.')[2] for name in inside}, {(one, other) for one, other in arrows if one != other}


def test_the_engine_is_small_enough_to_know():
    """Rooms and arrows of vet/engine. Whoever adds one looks first for a room that is there."""
    rooms, arrows = arrows_within('engine')
    assert len(rooms) <= 15 and len(arrows) <= 26, (sorted(rooms), sorted(arrows))


@pytest.mark.parametrize('top', ['core', 'engine', 'hub'])
def test_no_room_has_a_circle_inside(top):
    _, left = arrows_within(top)
    while ends := {other for _, other in left} - {one for one, _ in left}:
        left = {(one, other) for one, other in left if other not in ends}
    assert not left


@pytest.mark.parametrize(
    'module, source, wrong',
    [
        (
            'vet.hub.made_up',
            'from vet.engine.trainer import Trainer',
            ['vet.hub.made_up -> vet.engine.trainer'],
        ),
        (
            'vet.engine.made_up',
            'from vet.hub.names import find_folder',
            ['vet.engine.made_up -> vet.hub.names'],
        ),
        (
            'vet.core.made_up',
            'from vet.engine.trainer import Trainer',
            ['vet.core.made_up -> vet.engine.trainer'],
        ),
        ('vet.core.made_up', 'from vet import builders', ['vet.core.made_up -> vet.builders']),
        (
            'vet.tuners.made_up',
            'def f():\n    import vet.heads.linear',
            ['vet.tuners.made_up -> vet.heads.linear'],
        ),
        (
            'vet.tuners.made_up',
            'from vet.tuners.lora import LoRA',
            ['vet.tuners.made_up -> vet.tuners.lora, two plugins'],
        ),
        (
            'vet.tuners.made_up',
            'from .lora import LoRA',
            ['vet.tuners.made_up -> vet.tuners.lora, two plugins'],
        ),
        ('vet.tuners.made_up', 'from . import lora', ['vet.tuners.made_up -> vet.tuners.lora, two plugins']),
        ('vet.tuners.made_up', 'from ..hub import presets', ['vet.tuners.made_up -> vet.hub.presets']),
        ('vet.datasets.made_up', 'from vet.core.site import Site', ['vet.datasets.made_up -> vet.core.site']),
        (
            'vet.datasets.made_up',
            'from vet.datasets.base import ImageDataset\nfrom vet.registry import DATASETS',
            [],
        ),
        (
            'vet.engine.made_up',
            'class C:\n    def f(self):\n        from vet.hub.presets import preset',
            ['vet.engine.made_up -> vet.hub.presets'],
        ),
        ('vet.pipelines', 'from vet.cli.command import run', ['vet.pipelines -> vet.cli.command']),
        (
            'vet.core.made_up',
            'import torch\nfrom vet.errors import UserError\nfrom vet.core.site import Site',
            [],
        ),
    ],
)
def test_a_wrong_arrow_is_found(module, source, wrong):
    assert wrong_arrows(source, module) == wrong
