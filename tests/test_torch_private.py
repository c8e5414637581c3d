"""vet/torch_private.py alone uses private names of torch, timm and accelerate, and vet computes the same
without each of them.
"""

import ast
import functools
import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.contract.runs import LABELS, gradients, in_autocast, with_head
from tests.nets import built_anew, images, tiny
from vet import torch_private
from vet.datasets.image import open_image
from vet.engine.device import make_accelerator, precision_of
from vet.engine.fast.attention_in_bf16 import AttentionByProducts
from vet.engine.fast.frozen_in_bf16 import norm_inputs_kept_in, weights_stored_in
from vet.engine.feed.cut import find_cut
from vet.registry import TUNERS

ROOT = Path(__file__).parents[1]


# Only one file uses them ------------------------------------------------------------------------------------


def is_private(name: str) -> bool:
    return name.startswith('_') and not name.endswith('__')


@functools.cache
def own_names() -> set[str]:
    """The names that vet itself gives to something: an attribute of that name may be vet's own."""
    found = set()
    for path in (ROOT / 'vet').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
    return found - foreign_names()


LIBRARIES = ('torch', 'nn', 'F', 'timm', 'accelerate', 'aten')


@functools.cache
def foreign_names() -> set[str]:
    """The private names of torch's and accelerate's objects: such a name is theirs wherever it stands."""
    theirs = (nn.Conv2d(1, 1, 1), torch.ones(1), torch.ones(1).untyped_storage(), torch, Accelerator)
    return {name for one in theirs for name in dir(one) if is_private(name)}


def private_uses(source: str, own: set[str]) -> list[str]:
    """The private names of others in a module, and torch.ops, whose operations are no documented functions."""
    found, foreign = [], foreign_names()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            path = ast.unparse(node)
            of_library = path.split('.')[0] in LIBRARIES
            if is_private(node.attr) and (of_library or node.attr not in own):
                found.append(path)
            elif path == 'torch.ops' or (of_library and node.attr.startswith('native_')):
                found.append(path)
        elif isinstance(node, ast.Import):
            found += [one.name for one in node.names if any(map(is_private, one.name.split('.')))]
        elif isinstance(node, ast.ImportFrom) and not (node.module or '').startswith('vet'):
            paths = [f'{node.module}.{one.name}' for one in node.names]
            found += [path for path in paths if any(map(is_private, path.split('.')))]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            last = node.value.rpartition('.')[2]
            if len(last) > 1 and is_private(last) and last in foreign and last not in own:
                found.append(node.value)
    return found


def test_no_other_file_uses_a_private_name():
    own = own_names()
    found = {
        str(path.relative_to(ROOT)): private_uses(path.read_text(), own)
        for path in (ROOT / 'vet').rglob('*.py')
        if path.name != 'torch_private.py'
    }
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    'source',
    [
        'import torch\ntorch._C._are_functorch_transforms_active()',
        'import torch\nx = torch.ops.aten.convolution_backward',
        'import torch\nx = torch.native_layer_norm',
        'from torch.utils._pytree import tree_map',
        'import torch._dynamo',
        'from accelerate.state import _private',
        'module._parameters["weight"] = None',
        'getattr(module, "_conv_forward")',
        'from timm.models._manipulate import named_apply',
        'x = nn.modules.batchnorm._BatchNorm',
        'network._forward_hooks',
    ],
)
def test_a_private_name_is_found(source):
    assert private_uses(source, own_names())


def test_every_listed_name_is_there_today():
    """Else the list names what torch does not have any more."""
    assert [name for name in torch_private.PRIVATE if not is_there(name)] == []


def owner_of(name: str) -> tuple[object, str]:
    """The object that has a listed name, and the last part of the name."""
    first, *between, last = name.split('.')
    owner = importlib.import_module(first)
    for depth, part in enumerate(between, 2):
        if not hasattr(owner, part):
            importlib.import_module('.'.join(name.split('.')[:depth]))
        owner = getattr(owner, part)
    return owner, last


def is_there(name: str) -> bool:
    owner, last = owner_of(name)
    return hasattr(owner, last) or importlib.util.find_spec(name) is not None


# Without each of them ---------------------------------------------------------------------------------------


class Without:
    """What stands for torch.ops.aten, but for one name."""

    def __init__(self, whole, name):
        self.whole, self.name = whole, name

    def __getattr__(self, name):
        if name == self.name:
            raise AttributeError(name)
        return getattr(self.whole, name)


def nothing(owner) -> None:
    raise AttributeError('the name is removed')


def remove(name: str, monkeypatch) -> None:
    """Takes a name away from the real library."""
    owner, last = owner_of(name)
    if owner is torch.ops.aten:
        monkeypatch.setattr(torch.ops, 'aten', Without(owner, last))
        return
    if last in ('_cdata', '_version'):  # of a class in C, which cannot be changed
        monkeypatch.setattr(owner, last, property(nothing))
        return
    monkeypatch.delattr(owner if last in vars(owner) else type(owner), last)


def start_with(name: str, monkeypatch) -> None:
    """Removes a name, and lets vet see the library as a process sees it that starts now."""
    remove(name, monkeypatch)
    spec = importlib.util.spec_from_file_location('torch_private_anew', torch_private.__file__)
    anew = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(anew)
    kinds = {id(torch_private.BATCH_NORM): anew.BATCH_NORM, id(torch_private.CONVOLUTION): anew.CONVOLUTION}
    for module in [module for key, module in sys.modules.items() if key.startswith('vet.')]:
        for key, value in list(vars(module).items()):
            if module is not torch_private and value is vars(torch_private).get(key, module):
                monkeypatch.setattr(module, key, vars(anew)[key])
            elif isinstance(value, tuple) and any(map(kinds.get, map(id, value))):
                monkeypatch.setattr(module, key, tuple(kinds.get(id(part), part) for part in value))


def computed() -> dict[str, torch.Tensor]:
    """Losses and gradients of tuned networks, in float32 and with each trick of bf16, and other things that
    stand on private names.
    """
    found = {}
    for family in ('vit', 'resnet'):
        backbone = built_anew(family)  # torch copies tensors by private names
        torch.manual_seed(3)
        tuner = TUNERS.build(dict(type='LoRA', at='weight', rank=2))
        model = with_head(backbone, [tuner])
        with torch.no_grad():
            for parameter in model.trainable().values():
                parameter.normal_(0, 0.3)
        model.train()
        loss, float32 = gradients(model, images(6), LABELS)
        with (
            weights_stored_in(torch.bfloat16, model),
            norm_inputs_kept_in(torch.bfloat16, model),
            AttentionByProducts(),
        ):
            loss_16, bf16 = in_autocast(model)
        found |= {f'{family}.{name}': value for name, value in float32.items()}
        found |= {f'{family}.bf16.{name}': value for name, value in bf16.items()}
        found |= {f'{family}.loss': torch.tensor(loss), f'{family}.bf16.loss': torch.tensor(loss_16)}
        found[f'{family}.modes'] = torch.tensor([float(part.training) for part in model.modules()])
    prompts = with_head(built_anew('vit'), [])
    found['cut'] = torch.tensor(
        [float(ord(letter)) for letter in find_cut(prompts, torch.Size((3, 32, 32))).name]
    )
    precisions = [precision_of(make_accelerator('cpu', precision)) for precision in ('bf16', 'fp32')]
    found['precisions'] = torch.tensor([float(precision == 'bf16') for precision in precisions])
    return found


@pytest.fixture(scope='module')
def expected():
    return computed()


@pytest.mark.parametrize('name', [name for name in torch_private.PRIVATE if name != 'torch._dynamo'])
def test_without_a_name_vet_computes_the_same(name, expected, monkeypatch):
    """In bf16, numbers near those with the name: another route rounds at other places."""
    start_with(name, monkeypatch)
    found = computed()
    assert found.keys() == expected.keys()
    for key, value in found.items():
        allowed = (0.4 if 'bf16' in key else 1e-4) * expected[key].norm()
        assert (value - expected[key]).norm() <= allowed, key


def test_without_a_compiler_of_that_name_graphs_are_forgotten_in_any_case(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.compiler, 'reset', lambda: calls.append(True))
    monkeypatch.delitem(sys.modules, 'torch._dynamo', raising=False)
    tuner = TUNERS.build(dict(type='LoRA', rank=2))
    tuner.attach(tiny('vit'))
    assert not calls
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    tuner.detach()
    assert calls


@pytest.mark.parametrize('create_graph', [False, True])
@pytest.mark.parametrize('wanted', ['x', 'weight'])
def test_without_its_gradient_a_convolution_has_autograds(wanted, create_graph, monkeypatch):
    """Second derivatives among them."""
    torch.manual_seed(0)
    x, weight, dy = (torch.randn(shape).double() for shape in ((2, 3, 8, 8), (4, 3, 3, 3), (2, 4, 3, 3)))

    def derived():
        given = [t.clone().requires_grad_(create_graph) for t in (x, weight, dy)]
        with torch.set_grad_enabled(create_graph):
            first = torch_private.convolution_gradients(
                given[2], *given[:2], ((2, 2), (0, 1), (1, 1)), wanted
            )
        if not create_graph:
            return [first]
        return [first.detach(), *torch.autograd.grad(first.square().sum(), given, allow_unused=True)]

    dy = torch.randn(2, 4, 3, 4).double()
    exact = derived()
    remove('torch.ops.aten.convolution_backward', monkeypatch)
    for found, wanted_value in zip(derived(), exact, strict=True):
        assert (found is None) == (wanted_value is None)
        if found is not None:
            torch.testing.assert_close(found, wanted_value)


UNBOUND = """
import sys
import torch, timm, torchvision, accelerate, torch.utils.checkpoint, torch.utils.flop_counter, warnings
import torch.utils._python_dispatch as dispatch
del dispatch.TorchDispatchMode
from vet import pipeline
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter('always')
    model = pipeline('vision-efficient-tuning', sys.argv[1], device='cpu')
print(len([one for one in said if 'folders that you trust' in str(one.message)]))
print(model(sys.argv[2])['labels'])
"""


@pytest.mark.slow
def test_a_folder_that_nothing_bounds_loads_with_a_warning(python, trainer, tmp_path):
    image = tmp_path / 'image.png'
    open_image(trainer.data['test'][0][0]).save(image)
    done = python('-c', UNBOUND, trainer.folder.output, image)
    assert done.returncode == 0, done.stderr
    warnings, labels = done.stdout.splitlines()
    assert int(warnings) >= 1
    assert eval(labels) == trainer.predict([image], topk=5)[0]['labels']
