"""AdaLoRA: its equation, penalty and budget steps written out in NumPy, against PEFT's allocator, and a
run that is resumed.
"""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.engine.runs import small
from tests.nets import agrees, images, tiny, tuned
from vet.core.tuner import Tuner
from vet.errors import NoSiteError, UserError
from vet.registry import TUNERS

SITES = [f'blocks.{i}.attn.qkv' for i in range(3)]


def attached(**config: object) -> Tuner:
    torch.manual_seed(0)
    tuner = TUNERS.build(dict(type='AdaLoRA', **config))
    tuner.attach(tiny('vit'))
    return tuner


@pytest.mark.parametrize(
    'family, site',
    [('vit', 'blocks.1.mlp.fc1'), ('resnet', 'layer2.0.conv1'), ('convnext', 'stages.1.blocks.0.conv_dw')],
)
def test_update_is_a_sum_of_triplets(family, site):
    backbone, tuner = tuned(family, type='AdaLoRA', rank=3, target=2, alpha=6, at=site)
    d = tuner.deltas[site.replace('.', '/')]
    assert agrees(
        backbone, tuner, site, sum(2.0 * d.Lambda[i] * torch.outer(d.P[:, i], d.Q[i]) for i in range(3))
    )


def test_start():
    for delta in attached(rank=24).deltas.values():
        assert not delta.Lambda.any()
        assert [delta.P.std().item(), delta.Q.std().item()] == [pytest.approx(0.02, rel=0.15)] * 2


def test_penalty_is_the_sum_of_squared_distances_from_orthogonality():
    _, tuner = tuned('vit', type='AdaLoRA', rank=3, target=2, gamma=0.3)
    expected = 0.0
    for delta in tuner.deltas.values():
        P, Q = delta.P.detach().numpy(), delta.Q.detach().numpy()
        for i in range(3):
            for j in range(3):
                expected += (P[:, i] @ P[:, j] - (i == j)) ** 2 + (Q[i] @ Q[j] - (i == j)) ** 2
    penalty = tuner.penalty()
    assert penalty.item() == pytest.approx(0.3 * expected, rel=1e-10)
    penalty.backward()
    assert all(delta.P.grad.any() and delta.Q.grad.any() for delta in tuner.deltas.values())
    for delta in tuner.deltas.values():
        delta.P.data, delta.Q.data = torch.eye(96, 3).double(), torch.eye(3, 32).double()
    assert tuner.penalty() == 0
    assert attached(gamma=0).penalty() is None


# Budget --------------------------------------------------------------------------------------------------------------


def test_budget_falls_as_a_cube_between_warmup_and_final():
    tuner = attached(rank=10, target=4, warmup=0.2, final=0.4)  # 30 triplets, of which 12 stay
    assert [tuner.budget(progress) for progress in (0.01, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0)] == [
        30,
        30,
        12 + int(18 * 0.75**3),
        12 + int(18 * 0.5**3),
        12,
        12,
        12,
    ]
    assert attached(rank=[12, 0, 6], target=2.5).budget(1.0) == 5  # of two sites


def move(tuner: Tuner, generator: torch.Generator) -> None:
    """As an optimizer leaves it: other parameters, and gradients, here both at random."""
    for _, parameter in tuner.trainable():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def lambdas(tuner: Tuner) -> np.ndarray:
    """(sites, rank)"""
    return np.stack([delta.Lambda.detach().numpy().copy() for delta in tuner.deltas.values()])


def test_steps_prune_what_numpy_finds_least_important():
    """Twelve steps: two before the budget falls, five in which 12 triplets become 6, five that leave
    the importance as it is.
    """
    _, tuner = tuned('vit', type='AdaLoRA', rank=4, target=2, warmup=0.2, final=0.4, beta1=0.7, beta2=0.8)
    generator, kept_last = torch.Generator().manual_seed(0), []
    mean, spread = ({name: np.zeros(p.shape) for name, p in tuner.trainable()} for _ in range(2))
    for k in range(12):
        move(tuner, generator)
        before = lambdas(tuner)
        if (k + 1) / 12 < 0.6:
            for name, p in tuner.trainable():
                now = np.abs(p.detach().numpy() * p.grad.numpy())
                mean[name] = 0.7 * mean[name] + 0.3 * now
                spread[name] = 0.8 * spread[name] + 0.2 * np.abs(now - mean[name])
        s = {name: mean[name] * spread[name] for name in mean}
        importance = np.array(
            [
                [
                    s[f'deltas.{site}.Lambda'][i]
                    + s[f'deltas.{site}.P'][:, i].mean()
                    + s[f'deltas.{site}.Q'][i].mean()
                    for i in range(4)
                ]
                for site in SITES
            ]
        )
        fallen = min(max(((k + 1) / 12 - 0.2) / 0.4, 0), 1)
        budget = 6 + int(6 * (1 - fallen) ** 3)
        kept = importance >= np.sort(importance.flatten())[-budget]
        tuner.on_step((k + 1) / 12)
        assert kept.sum() == budget and np.array_equal(lambdas(tuner), np.where(kept, before, 0.0))
        state = tuner.training_state()
        for name in mean:
            assert np.allclose(state[f'{name}_sensitivity'].numpy(), mean[name], rtol=1e-8, atol=0)
            assert np.allclose(state[f'{name}_uncertainty'].numpy(), spread[name], rtol=1e-8, atol=0)
        kept_last.append(kept)
    assert kept_last[0].all() and kept_last[1].all() and len({kept.sum() for kept in kept_last}) > 3
    assert all(np.array_equal(kept, kept_last[-1]) for kept in kept_last[7:])
    assert len(set(kept_last[-1].sum(1))) > 1  # the sites end at different ranks
    # and may take one up again
    assert any((later & ~earlier).any() for earlier, later in zip(kept_last, kept_last[1:]))


def test_same_output_importance_and_pruning_as_peft():
    import peft
    from peft.tuners.adalora import layer

    total, generator = 20, torch.Generator().manual_seed(0)
    backbone, tuner = tuned(
        'vit', type='AdaLoRA', rank=4, target=2, warmup=4 / total, final=6 / total, alpha=8, gamma=0
    )
    config = peft.AdaLoraConfig(
        init_r=4,
        target_r=2,
        tinit=4,
        tfinal=6,
        deltaT=1,
        total_step=total,
        lora_alpha=8,
        target_modules=['qkv'],
    )
    theirs = peft.get_peft_model(copy.deepcopy(tiny('vit').network), config).double().eval()
    allocator = layer.RankAllocator(theirs, config, 'default')
    x, budgets = images(2).double(), []
    for k in range(1, total + 1):
        move(tuner, generator)
        pairs = []
        for name, delta in tuner.deltas.items():
            module = theirs.base_model.model.get_submodule(name.replace('/', '.'))
            pairs += [
                (delta.P, module.lora_B.default),
                (delta.Lambda, module.lora_E.default),
                (delta.Q, module.lora_A.default),
            ]
        for mine, their in pairs:
            their.data, their.grad = mine.data.clone().view_as(their), mine.grad.clone().view_as(their)
        tuner.on_step(k / total)
        budget, _ = allocator.update_and_allocate(theirs, k)
        budgets.append(budget)
        assert budget == tuner.budget(k / total) and all(
            torch.equal(mine, their.view_as(mine)) for mine, their in pairs
        )
        assert (lambdas(tuner) != 0).sum() == budget
    assert budgets[0] == 12 and budgets[-1] == 6 and len(set(budgets)) > 4
    assert torch.allclose(backbone(x), theirs(x), rtol=0, atol=1e-3)  # PEFT divides by rank + 1e-5
    assert not torch.allclose(backbone(x), tiny('vit').eval().double()(x), rtol=0, atol=1e-1)


def test_what_has_no_gradient_keeps_its_statistics():
    _, tuner = tuned('vit', type='AdaLoRA', rank=2, target=1)
    tuner.on_step(0.05)  # before any gradient
    assert not any(value.any() for value in tuner.training_state().values())
    move(tuner, torch.Generator().manual_seed(0))
    tuner.on_step(0.1)
    before = {name: value.clone() for name, value in tuner.training_state().items()}
    for delta in tuner.deltas.values():
        delta.P.grad = delta.Lambda.grad = delta.Q.grad = None
    tuner.on_step(0.2)
    assert all(
        torch.equal(value, before[name]) and value.any() for name, value in tuner.training_state().items()
    )


# State ---------------------------------------------------------------------------------------------------------------


def test_statistics_are_for_further_training_alone():
    tuner = attached(rank=2, target=1)
    parts = {name.rpartition('.')[2] for name in tuner.state()}
    statistics = {name.rpartition('.')[2] for name in tuner.training_state()}
    assert parts == {'P', 'Lambda', 'Q', 'kept'}
    assert statistics == {
        f'{part}_{what}' for part in parts - {'kept'} for what in ('sensitivity', 'uncertainty')
    }


@pytest.mark.slow
def test_an_average_keeps_to_the_budget_and_unseen_triplets_are_not_pruned(tmp_path):
    options = {
        'model.tuners': [dict(type='AdaLoRA', rank=4, target=1, warmup=0, final=0.4)],
        'train.max_epochs': 4,
    }
    trainer = small(tmp_path / 'one', **options | {'train.ema': 0.9})
    trainer.train()
    deltas = list(trainer.model.tuners[0].eval().deltas.values())
    assert sum(int((delta.factors()[1].abs().sum(0) > 0).sum()) for delta in deltas) == len(deltas)
    assert sum(int((delta.Lambda != 0).sum()) for delta in deltas) > len(deltas)  # the average itself
    with pytest.raises(
        UserError, match='final is 0.4, but AdaLoRA has seen no gradient in the first 60% of the training'
    ):
        small(
            tmp_path / 'two',
            **options
            | {'train.max_epochs': 5, 'train.stages': [dict(epochs=4, train='head.*'), dict(epochs=1)]},
        ).train()


@pytest.mark.slow
def test_resumed_run_ends_as_the_unbroken_one(tmp_path):
    """Two epochs of four steps, and the second again from the checkpoint between them, while the budget
    falls.
    """
    options = {
        'model.tuners': [dict(type='AdaLoRA', rank=6, target=3, warmup=0.2, final=0.2)],
        'train.max_epochs': 2,
    }
    small(tmp_path / 'one', **options).train()
    resumed = small(tmp_path / 'two', str(tmp_path / 'one' / 'checkpoints' / 'step-00000004'), **options)
    resumed.train()
    one, two = (
        load_file(tmp_path / run / 'checkpoints' / 'step-00000008' / 'state.safetensors')
        for run in ('one', 'two')
    )
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert any(name.endswith('Lambda_uncertainty') and value.any() for name, value in one.items())
    ranks = [delta.Lambda.count_nonzero().item() for delta in resumed.model.tuners[0].deltas.values()]
    assert sum(ranks) == 3 * len(ranks)
    assert not any(
        'sensitivity' in name for name in load_file(tmp_path / 'one' / 'output' / 'tuner.safetensors')
    )


# Counts and refusals -------------------------------------------------------------------------------------------------


def test_count_on_vit_b16(count_on_vit_b16):
    assert count_on_vit_b16(type='AdaLoRA', rank=12) == 442_512


@pytest.mark.parametrize(
    'config, error, text',
    [
        (
            dict(target=13),
            UserError,
            r'target is 13; (allowed|it must be): an average rank above 0, up to the average rank of the start, 12',
        ),
        (dict(rank=[4, 0, 6], target=5.5), UserError, r'target is 5\.5; .* the start, 5\.'),
        (dict(target=0), UserError, r'target is 0; (allowed|it must be)'),
        (
            dict(warmup=0.5, final=0.5),
            UserError,
            r'warmup is 0\.5 and final is 0\.5; (allowed|it must be): shares of the training',
        ),
        (dict(warmup=-0.1), UserError, r'warmup is -0\.1'),
        (dict(beta1=1.0), UserError, r'beta1 is 1\.0; it must be at least 0 and below 1'),
        (dict(gamma=-1), UserError, r'gamma is -1; (allowed|it must be)'),
        (dict(rank=0), UserError, r'rank is 0'),
        (dict(rank=[0, 0, 0]), NoSiteError, r'AdaLoRA has nothing to train'),
        (dict(at='norm'), NoSiteError, r"AdaLoRA needs a weight matrix, but 'blocks\.0\.norm1'"),
    ],
    ids=str,
)
def test_refusal_says_what_was_given(config, error, text):
    backbone = tiny('vit')
    with pytest.raises(error, match='(?s)' + text):
        TUNERS.build(dict(type='AdaLoRA', **config)).attach(backbone)
    assert not any(p.requires_grad for p in backbone.parameters())
