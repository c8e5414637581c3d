"""Several tuned classifiers on one backbone: switched, disabled, mixed in one batch, shared by threads."""

import copy
import threading
from contextlib import suppress

import pytest
import torch
from torch import nn

from tests.contract.cases import CASES
from tests.contract.runs import classifier as of_case
from tests.contract.runs import snapshot, widest
from tests.nets import SWIN, images, timm_net, tiny
from vet.core.backbone import Backbone, Preprocessing
from vet.core.model import ImageClassifier
from vet.core.site_map import Layout
from vet.core.tuned_model import TunedModel, with_same_weights
from vet.core.tuner import Tuner
from vet.errors import UnknownNameError, UserError
from vet.heads.linear import LinearHead
from vet.registry import TUNERS

MIXING = {  # tuners that act on each image by itself, on a ViT
    'lora': dict(type='LoRA', rank=4),
    'qv': dict(type='LoRA', rank=2, parts='qv'),
    'dora': dict(type='LoRA', variant='dora', rank=2),
    'adapter': dict(type='Adapter', width=4),
    'linear': dict(type='LinearProbe'),
    'side': dict(type='SideTuning'),
    'ladder': dict(type='LadderSide', reduction=4, heads=2),
}
GROUPED = {
    'vpt': dict(type='VPT', length=2),
    'prefix': dict(type='Prefix', length=2),
    'bitfit': dict(type='BitFit'),
}


def held(family: str = 'vit', **tuners: dict) -> TunedModel:
    """One classifier for each tuner, every number of it random, with 2, 3, … classes."""
    backbone = tiny(family).eval()
    return TunedModel(
        backbone, {name: classifier(backbone, i, tuner) for i, (name, tuner) in enumerate(tuners.items())}
    )


def classifier(backbone, i: int, *tuners: dict) -> ImageClassifier:
    torch.manual_seed(i)
    classes = [f'class {k}' for k in range(i + 2)]
    model = ImageClassifier(
        with_same_weights(backbone),
        map(TUNERS.build, tuners),
        LinearHead(backbone.num_features, len(classes)),
        classes,
    )
    return moved(model)


def moved(model: ImageClassifier) -> ImageClassifier:
    """The model with other numbers where it trains."""
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def calls(model: TunedModel) -> list[int]:
    """The batch sizes that reach any copy of the backbone from now on."""
    seen: list[int] = []
    for backbone in (model.backbone, model._mixed, *(one.backbone for one in model.tasks.values())):
        backbone.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    return seen


def test_the_weights_are_there_once():
    model = held(**MIXING, **GROUPED)
    own = sum(p.numel() for one in model.tasks.values() for p in one.trainable().values())
    frozen = sum(p.numel() for p in model.backbone.parameters())
    assert {id(p) for p in model.tasks['lora'].backbone.network.parameters()} == {
        id(p) for p in model.backbone.parameters()
    }
    assert sum(p.numel() for p in model.parameters()) == frozen + own


def test_switching_and_disabling_touch_no_weight():
    model, x = held(**MIXING, **GROUPED), images()
    frozen, before = tiny('vit').eval(), snapshot(model)
    with torch.no_grad():
        alone = {name: copy.deepcopy(one)(x) for name, one in model.tasks.items()}
        for name in (*model.tasks, *reversed(model.tasks)):
            model.use(name)
            assert torch.equal(model(x), alone[name])
        model.use('dora')
        with model.disabled():
            assert torch.equal(model(x), frozen(x)) and torch.equal(model(x, 'vpt'), alone['vpt'])
            with pytest.raises(ZeroDivisionError), model.disabled():
                raise ZeroDivisionError
            assert model.active is None
        assert model.active == 'dora' and torch.equal(model(x), alone['dora'])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(
        torch.equal(value, frozen.state_dict()[name]) for name, value in model.backbone.state_dict().items()
    )


def test_a_mixed_batch_is_one_forward_and_gives_what_each_image_gives_alone():
    model, x = held(**MIXING), images(9)
    names = ['adapter', 'lora', 'side', 'lora', 'qv', 'linear', 'ladder', 'dora', 'lora']
    assert model.mixing == list(MIXING)
    with torch.no_grad():
        alone = [model(image[None], name)[0] for image, name in zip(x, names)]
        seen = calls(model)
        mixed = model(x, names)
    assert seen == [9]
    assert [len(row) for row in mixed] == [len(model.tasks[name].classes) for name in names]
    for one, other in zip(mixed, alone):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_tuners_that_cannot_mix_are_grouped():
    model, x = held(**MIXING, **GROUPED), images(8)
    names = ['vpt', 'lora', 'bitfit', 'vpt', 'adapter', 'prefix', 'vpt', 'lora']
    assert model.mixing == list(MIXING)
    with torch.no_grad():
        alone = [model(image[None], name)[0] for image, name in zip(x, names)]
        seen = calls(model)
        mixed = model(x, names)
    assert sorted(seen) == [1, 1, 3, 3]  # lora with adapter, vpt, prefix, bitfit
    for one, other in zip(mixed, alone):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_one_tuner_in_a_list_needs_no_mixing():
    model, x = held(**MIXING), images(3)
    with torch.no_grad():
        assert torch.equal(torch.stack(model(x, ['lora'] * 3)), model(x, 'lora'))


@pytest.mark.parametrize(
    'family, cases',
    [
        pytest.param('vit', tuple(widest().values()), id='vit, a case of each tuner'),
        *(
            pytest.param(family, CASES, marks=pytest.mark.slow, id=family)
            for family in ('vit', 'swin', 'convnext', 'resnet', 'clip', 'torchvision-vit')
        ),
    ],
)
def test_every_tuner_mixed_with_others_gives_what_it_gives_alone(family, cases):
    """Each case in one batch with frozen features of others, whether it mixes or is grouped. Every number
    of the case is away from its start.
    """
    backbone, x = tiny(family).eval(), images(6)
    tasks = {}
    for case in cases:
        with suppress(UserError):
            tasks[str(case)] = moved(of_case(case, family))
    model = TunedModel(backbone, tasks)
    assert 'LinearProbe' in model.mixing and len(model.mixing) > 3
    wrong = []
    with torch.no_grad():
        for name in tasks:
            mixed = torch.stack(model(x, [name, 'LinearProbe', name, name, 'LinearProbe', name])[::2][:2])
            alone = tasks[name](x[[0, 2]])
            if not torch.allclose(mixed, alone, rtol=1e-4, atol=1e-5):
                wrong.append((name, (mixed - alone).abs().max().item()))
    assert not wrong


def test_threads_share_one_model():
    model, x = held(**MIXING, **GROUPED), images(6)
    plans = [
        ['lora', 'adapter', 'vpt'] * 2,
        ['qv', 'lora', 'lora'] * 2,
        ['side', 'ladder', 'bitfit'] * 2,
        'lora',
    ]
    with torch.no_grad():
        serial = [model(x, plan) for plan in plans]
    wrong = []

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(10):
                if not all(torch.equal(a, b) for a, b in zip(model(x, plans[i]), serial[i])):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(plans))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_disabled_is_for_its_own_thread():
    model, entered, left = held(lora=MIXING['lora']), threading.Event(), threading.Event()
    model.use('lora')

    def other() -> None:
        with model.disabled():
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=other)
    with model.disabled():
        thread.start()
        entered.wait(10)
    assert model.active == 'lora'
    left.set()
    thread.join()
    assert model.active == 'lora'


class Windows(nn.Module):
    """Maps in, four windows of each image out."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, 8, 8, 8)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2).reshape(-1, 4, 8)


class WindowNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.windows, self.norm = Windows(), nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(self.windows(x).reshape(len(x), -1, 8)).mean(1)


class Shift(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.randn(8))

    def forward(self, x, y):
        return y + self.shift


class Shifts(Tuner):
    def tune(self, site):
        self.after(site, Shift())


def test_a_module_that_gives_more_rows_than_it_takes():
    network = WindowNet()
    backbone = Backbone(
        network, Layout(), Preprocessing(size=(32, 32)), dict(type='test', name='windows')
    ).eval()
    torch.manual_seed(0)
    model = TunedModel(
        backbone,
        {
            name: ImageClassifier(
                with_same_weights(backbone), [Shifts('windows')], LinearHead(8, 2), ['a', 'b']
            )
            for name in 'xy'
        },
    )
    for row, image, name in zip(model(images(4), list('xyyx')), images(4), 'xyyx'):
        torch.testing.assert_close(row, model(image[None], name)[0])


def test_images_of_another_size_have_other_windows():
    backbone = timm_net('swin_tiny_patch4_window7_224', **SWIN, strict_img_size=False).eval()
    lora = dict(type='LoRA', rank=2)
    model, x = (
        TunedModel(backbone, {name: classifier(backbone, i, lora) for i, name in enumerate('xy')}),
        images(4, size=64),
    )
    assert model.mixing == ['x', 'y']
    for row, image, name in zip(model(x, list('xyyx')), x, 'xyyx'):
        torch.testing.assert_close(row, model(image[None], name)[0], rtol=1e-5, atol=1e-5)


def test_a_merged_classifier_is_grouped():
    backbone = tiny('vit').eval()
    tasks = {name: classifier(backbone, i, MIXING['lora']) for i, name in enumerate('xy')}
    tasks['x'].merge()
    model, x = TunedModel(backbone, tasks), images(4)
    assert model.mixing == ['y']
    for row, image, name in zip(model(x, list('xyyx')), x, 'xyyx'):
        torch.testing.assert_close(row, model(image[None], name)[0], rtol=1e-5, atol=1e-5)


def test_refusals():
    model = held(lora=MIXING['lora'], adapter=MIXING['adapter'])
    edited = ImageClassifier(model.backbone, [], LinearHead(model.backbone.num_features, 2), ['a', 'b'])
    with pytest.raises(UserError, match='on the backbone itself'):
        TunedModel(model.backbone, dict(edited=edited))
    with pytest.raises(UnknownNameError, match="'lara'.*lora"):
        model.use('lara')
    with pytest.raises(UnknownNameError, match='unknown task None.*name one with task='):
        model(images(2))
    with pytest.raises(UnknownNameError, match="'lara'"):
        model(images(2), ['lora', 'lara'])
    with pytest.raises(UserError, match='3 tasks for 2 images'):
        model(images(2), ['lora'] * 3)
