"""MultiTaskClassifier: what tasks share is one tensor, what is their own is not, and both have names
they are saved under.
"""

import copy

import pytest
import torch

from tests.nets import images, randomised, timm_net, tiny
from vet.core.assemble import build_classifiers
from vet.core.backbone import Backbone
from vet.core.model import ImageClassifier
from vet.core.multitask import MultiTaskClassifier
from vet.errors import DataError, UnknownNameError, UserError

LINEAR = dict(type='Linear')
LORA = dict(type='LoRA', rank=2)


def other_weights() -> Backbone:
    """A ViT of the same shape as tiny('vit'), and other weights."""
    kwargs = dict(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2)
    return randomised(timm_net('vit_tiny_patch16_224', **kwargs), seed=7)


def make(
    shared: str = '.*', tuners=(LORA,), backbones=(lambda: tiny('vit'), other_weights)
) -> MultiTaskClassifier:
    torch.manual_seed(0)
    model = build_classifiers(
        {
            'birds': (backbones[0](), LINEAR, ['owl', 'rook']),
            'cars': (backbones[1](), LINEAR, ['bus', 'cab', 'van']),
        },
        list(tuners),
        shared,
    )
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def plain(model: MultiTaskClassifier, task: str, x: torch.Tensor) -> torch.Tensor:
    """W0_t + B A written into the weights of an untouched backbone of the task, in float64."""
    backbone = {'birds': lambda: tiny('vit'), 'cars': other_weights}[task]().double().eval()
    state = {name: value.double() for name, value in model.trained_state().items()}
    for i, block in enumerate(backbone.network.blocks):
        A, B = (
            state.get(
                f'tuners.0.deltas.blocks.{i}.attn.qkv.{part}',
                state.get(f'tuners.{task}.0.deltas.blocks.{i}.attn.qkv.{part}'),
            )
            for part in 'AB'
        )
        block.attn.qkv.weight.data += B @ A
    return backbone(x.double()) @ state[f'head.{task}.fc.weight'].T + state[f'head.{task}.fc.bias']


@pytest.mark.parametrize(
    'shared, names',
    [
        ('.*', {'tuners.0.deltas.blocks.0.attn.qkv.A', 'tuners.0.deltas.blocks.0.attn.qkv.B'}),
        (
            r'.*\.A',
            {
                'tuners.0.deltas.blocks.0.attn.qkv.A',
                'tuners.birds.0.deltas.blocks.0.attn.qkv.B',
                'tuners.cars.0.deltas.blocks.0.attn.qkv.B',
            },
        ),
    ],
)
def test_each_task_is_its_own_weights_plus_what_is_shared(shared, names):
    model, x = make(shared), images()
    assert {name for name in model.trainable() if 'blocks.0' in name} == names
    for task in ('birds', 'cars'):
        assert torch.allclose(model(x, task).double(), plain(model, task, x), atol=1e-4)
    sizes = {name: p.numel() for name, p in model.trainable().items()}
    lora = 3 * 2 * 32 + 3 * 2 * 96 * (1 if shared == '.*' else 2)
    heads = 33 * 2 + 33 * 3
    assert sum(sizes.values()) == lora + heads
    backbone = sum(p.numel() for p in tiny('vit').parameters())
    assert model.count() == dict(
        tuners=lora,
        head=heads,
        trainable=lora + heads,
        backbone=2 * backbone,
        total=2 * backbone + lora + heads,
    )


def test_gradient_of_what_is_shared_is_the_sum_over_tasks():
    model, x = make(r'.*\.A'), images()

    def gradients(*tasks):
        parameters = model.trainable()
        loss = sum(model(x, task).square().sum() for task in tasks)
        return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)))

    birds, cars, both = gradients('birds'), gradients('cars'), gradients('birds', 'cars')
    for name, gradient in both.items():
        parts = [part[name] for part in (birds, cars) if part[name] is not None]
        assert len(parts) == (2 if name.endswith('.A') else 1), name
        assert torch.allclose(gradient, sum(parts), rtol=1e-4, atol=1e-5)


def test_equal_weights_are_held_once():
    model = make(backbones=(lambda: tiny('vit'),) * 2)
    one, two = (list(part.backbone.network.parameters()) for part in model.tasks.values())
    assert len(one) == len(two) and all(a is b for a, b in zip(one, two))
    assert model.count()['backbone'] == sum(p.numel() for p in one)
    assert not torch.equal(
        make().for_task('cars').backbone(images()), model.for_task('cars').backbone(images())
    )


def test_thawed_values_are_each_task_s_own_even_of_one_backbone():
    model = make(tuners=(LORA, dict(type='BitFit')), backbones=(lambda: tiny('vit'),) * 2)
    names = [name for name in model.trainable() if name.endswith('thawed.norm.bias')]
    assert names == ['tuners.birds.1.thawed.norm.bias', 'tuners.cars.1.thawed.norm.bias']
    norms = [part.backbone.network.norm for part in model.tasks.values()]
    assert norms[0].bias is not norms[1].bias and norms[0].weight is norms[1].weight


def test_state_goes_into_a_new_model_and_copies_stay_tied():
    model, x = make(r'.*\.A'), images()
    fresh = make(r'.*\.A')
    with torch.no_grad():
        for parameter in fresh.trainable().values():
            parameter.zero_()
    fresh.load_trained_state(model.trained_state())
    for task in ('birds', 'cars'):
        assert torch.equal(fresh(x, task), model(x, task))
    copied = copy.deepcopy(model)
    assert set(copied.trainable()) == set(model.trainable()) and copied.count() == model.count()
    with pytest.raises(
        DataError, match=r"the file does not fit this model at 1 tensors, such as 'head.cars.fc.bias'"
    ):
        fresh.load_trained_state(
            {name: value for name, value in model.trained_state().items() if name != 'head.cars.fc.bias'}
        )


def test_each_task_merges_into_its_own_backbone():
    model, x = make(), images()
    unmerged = model(x, 'cars')
    network = model.for_task('cars').merge()
    assert set(network.state_dict()) == set(other_weights().network.state_dict())
    assert torch.allclose(model(x, 'cars'), unmerged, rtol=1e-4, atol=1e-5)
    model.for_task('cars').unmerge()
    assert torch.equal(model(x, 'cars'), unmerged)


def test_refusals():
    model = make()
    with pytest.raises(UnknownNameError, match="unknown task 'bird'. Did you mean 'birds'"):
        model.for_task('bird')
    with pytest.raises(UnknownNameError, match='unknown task None.*name one with task='):
        model.for_task(None)
    one: ImageClassifier = model.for_task('cars')
    with pytest.raises(UserError, match="task is 'cars', but the model has one task without a name"):
        one.for_task('cars')
    with pytest.raises(
        UserError, match=r"'tuners.0.deltas.blocks.0.attn.qkv.A', which is not of one shape in every task"
    ):
        make(backbones=(lambda: tiny('vit'), lambda: tiny('torchvision-vit')))


@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize(
    'shared, tuner, message',
    [
        (
            'C',
            LORA,
            r"model.shared='C' matches nothing: the names are \['tuners.0.deltas.blocks.0.attn.qkv.A', ",
        ),
        (r'tuners\..*', dict(type='BitFit'), 'matches nothing: the tuners add no parameters. Give a regular'),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(count, shared, tuner, message):
    """For one task too, where nothing could be shared: the user has meant something else."""
    names = ['birds', 'cars'] if count == 2 else [None]
    with pytest.raises(UserError, match=message):
        build_classifiers({name: (tiny('vit'), LINEAR, ['a', 'b']) for name in names}, [tuner], shared)


def test_a_pattern_that_matches_is_accepted_for_one_task():
    for tuner, shared in ((LORA, r'.*\.A'), (LORA, '.*'), (dict(type='BitFit'), '.*')):
        model = build_classifiers({None: (tiny('vit'), LINEAR, ['a', 'b'])}, [tuner], shared)
        assert model(images(2)).shape == (2, 2)
