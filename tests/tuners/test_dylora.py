"""DyLoRA: at each rank the plain LoRA of its first rows and columns, its schedules, and a run that is
resumed.
"""

import json
import random

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.runs import small
from tests.nets import images, tiny, tuned
from vet.core.model import ImageClassifier
from vet.core.tuner import Tuner
from vet.errors import NoSiteError, UnknownNameError, UserError
from vet.heads.linear import LinearHead
from vet.hub.model_folder import load_model
from vet.registry import TUNERS


def plain(family: str, dylora: Tuner, b: int, alpha: float, at: str) -> torch.nn.Module:
    """The backbone with LoRA of rank b, whose factors are the first of `dylora`'s."""
    backbone, lora = tuned(family, type='LoRA', rank=b, alpha=alpha, at=at)
    with torch.no_grad():
        for name, delta in lora.deltas.items():
            delta.A.copy_(dylora.deltas[name].A[:b])
            delta.B.copy_(dylora.deltas[name].B[:, :b])
    return backbone


@pytest.mark.parametrize('b', [1, 2, 4])
@pytest.mark.parametrize('family', ['vit', 'resnet', 'convnext'])
def test_at_rank_b_it_is_plain_lora_of_the_first_b(family, b):
    backbone, tuner = tuned(family, type='DyLoRA', rank=4, alpha=6, at='weight')
    x = images(2).double()
    full = backbone(x)
    wanted = plain(family, tuner, b, 6, 'weight')(x)
    tuner.use_rank(b)
    assert torch.allclose(backbone(x), wanted, rtol=1e-8, atol=1e-8)
    assert torch.allclose(full, wanted) == (b == 4)
    for delta in tuner.deltas.values():
        delta.current.fill_(b)
    tuner.use_rank(4)
    assert torch.allclose(backbone(x), full, rtol=1e-8, atol=1e-8)  # 'random' is evaluated whole
    tuner.train()  # of the tuner alone: no batch statistics
    assert torch.allclose(backbone(x), wanted, rtol=1e-8, atol=1e-8)


def test_without_alpha_the_full_rank_is_not_scaled():
    backbone, tuner = tuned('vit', type='DyLoRA', rank=4)
    x = images(2).double()
    assert torch.allclose(backbone(x), plain('vit', tuner, 4, 4, 'attn.qkv')(x), rtol=1e-8, atol=1e-8)


def test_merged_at_the_rank_in_use():
    backbone = tiny('vit')
    model = ImageClassifier(
        backbone, [TUNERS.build(dict(type='DyLoRA', rank=4))], LinearHead(32, 3), 'abc'
    ).eval()
    delta = model.tuners[0].deltas['blocks/1/attn/qkv']
    with torch.no_grad():
        delta.B.normal_()
    W = backbone.network.blocks[1].attn.qkv.weight.clone()
    model.tuners[0].use_rank(3)
    model.merge()
    expected = W + 4 / 3 * delta.B[:, :3] @ delta.A[:3]
    assert torch.allclose(backbone.network.blocks[1].attn.qkv.weight, expected, rtol=0, atol=1e-5)


def test_only_what_the_step_uses_has_a_gradient():
    backbone, tuner = tuned('vit', type='DyLoRA', rank=4)
    tuner.train()
    for delta in tuner.deltas.values():
        delta.current.fill_(2)
    backbone(images(2).double()).square().sum().backward()
    for delta in tuner.deltas.values():
        assert delta.A.grad[:2].abs().sum(1).all() and not delta.A.grad[2:].any()
        assert delta.B.grad[:, :2].abs().sum(0).all() and not delta.B.grad[:, 2:].any()


# Schedules -----------------------------------------------------------------------------------------------------------


def courses(steps: int, **config: object) -> list[list[int]]:
    """The rank at each step, and last the one that training leaves, of each site."""
    tuner = TUNERS.build(dict(type='DyLoRA', **config))
    tuner.attach(tiny('vit'))
    ranks = [[delta.current.item() for delta in tuner.deltas.values()]]
    for step in range(steps):
        tuner.on_step((step + 1) / steps)
        ranks.append([delta.current.item() for delta in tuner.deltas.values()])
    return [list(course) for course in zip(*ranks)]


def test_grow_and_shrink_give_each_rank_an_equal_share():
    assert courses(8, rank=5, smallest=2, schedule='grow') == [[2, 2, 3, 3, 4, 4, 5, 5, 5]] * 3
    assert courses(8, rank=5, smallest=2, schedule='shrink') == [[5, 5, 4, 4, 3, 3, 2, 2, 2]] * 3
    assert courses(4, rank=[4, 2, 1], schedule='grow') == [[1, 2, 3, 4, 4], [1, 1, 2, 2, 2], [1] * 5]


def test_random_draws_all_ranks_alike_and_the_same_at_every_site_and_time():
    first, *others = courses(4000, rank=5, smallest=2)
    assert others == [first, first]
    assert [first.count(b) / len(first) for b in (2, 3, 4, 5)] == [pytest.approx(0.25, abs=0.03)] * 4
    assert courses(4000, rank=5, smallest=2)[0] == first
    assert courses(4000, rank=5, smallest=2, seed=1)[0] != first
    pairs = set(zip(first, first[1:]))
    assert len(pairs) == 16  # a step's draw tells nothing of the next one's


def test_draws_leave_the_global_random_streams_alone():
    tuner = TUNERS.build(dict(type='DyLoRA'))
    tuner.attach(tiny('vit'))
    before = random.getstate(), torch.get_rng_state()
    tuner.on_step(0.3)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize('schedule, b', [('random', 4), ('grow', 3), ('shrink', 2)])
def test_rank_of_evaluation(schedule, b):
    backbone, tuner = tuned('vit', type='DyLoRA', rank=4, schedule=schedule)
    tuner.on_step(0.5)
    x = images(2).double()
    assert torch.allclose(backbone(x), plain('vit', tuner, b, 4, 'attn.qkv')(x), rtol=1e-8, atol=1e-8)
    tuner.use_rank(1)
    assert torch.allclose(backbone(x), plain('vit', tuner, 1, 4, 'attn.qkv')(x), rtol=1e-8, atol=1e-8)


def test_a_site_of_a_smaller_rank_keeps_it():
    _, tuner = tuned('vit', type='DyLoRA', rank=[1, 3, 4], use=3)
    assert [delta.most.item() for delta in tuner.deltas.values()] == [1, 3, 3]
    tuner.use_rank(4)
    assert [delta.most.item() for delta in tuner.deltas.values()] == [1, 3, 4]


def test_another_rank_compiles_nothing_anew():
    backbone = tiny('vit').train()
    tuner = TUNERS.build(dict(type='DyLoRA', rank=4, at='attn.qkv[0]'))
    tuner.attach(backbone)
    delta = tuner.deltas['blocks/0/attn/qkv'].train()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    qkv = backbone.network.blocks[0].attn.qkv
    fast = torch.compile(qkv, fullgraph=True, backend=backend)
    with torch.no_grad():
        delta.B.normal_()
        x = torch.randn(2, 5, 32)
        outputs = []
        for b in (4, 1, 2):
            delta.current.fill_(b)
            outputs.append(fast(x))
            assert torch.allclose(outputs[-1], qkv(x), rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1 and not torch.allclose(outputs[1], outputs[2])


# State ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('schedule', ['random', pytest.param('shrink', marks=pytest.mark.slow)])
@pytest.mark.slow
def test_resumed_run_ends_as_the_unbroken_one_and_its_folder_serves_every_rank(tmp_path, schedule):
    """Two epochs of four steps, and the second again from the checkpoint between them."""
    options = {'model.tuners': [dict(type='DyLoRA', rank=4, schedule=schedule)], 'train.max_epochs': 2}
    small(tmp_path / 'one', **options).train()
    resumed = small(tmp_path / 'two', str(tmp_path / 'one' / 'checkpoints' / 'step-00000004'), **options)
    resumed.train()
    one, two = (
        load_file(tmp_path / run / 'checkpoints' / 'step-00000008' / 'state.safetensors')
        for run in ('one', 'two')
    )
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert {name.rpartition('.')[2] for name in one if name.startswith('model.tuners')} == {
        'A',
        'B',
        'current',
    }

    configuration = tmp_path / 'one' / 'output' / 'configuration.json'
    x, written = torch.randn(3, 3, 8, 8), json.loads(configuration.read_text())
    model = resumed.model.eval()
    whole = model(x)
    assert torch.equal(load_model(tmp_path / 'one' / 'output')(x), whole)
    written['model']['tuners'][0]['use'] = 1
    configuration.write_text(json.dumps(written))
    model.tuners[0].use_rank(1)
    assert torch.equal(load_model(tmp_path / 'one' / 'output')(x), model(x))
    assert torch.equal(model(x), whole) == (schedule == 'shrink')  # which has ended at rank 1


# Counts and refusals -------------------------------------------------------------------------------------------------


def test_count_on_vit_b16(count_on_vit_b16):
    assert count_on_vit_b16(type='DyLoRA', rank=8) == 294_912


@pytest.mark.parametrize(
    'config, error, text',
    [
        (
            dict(schedule='rise'),
            UnknownNameError,
            r"unknown schedule of tuner 'DyLoRA' 'rise'.*grow, random, shrink",
        ),
        (dict(smallest=0), UserError, r'smallest is 0; (allowed|it must be)'),
        (
            dict(rank=[4, 2, 4], smallest=3),
            UserError,
            r"smallest is 3, but the rank at 'blocks\.1\.attn\.qkv' .* is 2",
        ),
        (dict(rank=4, use=5), UserError, r'the rank to use is 5; (allowed|it must be): 1 to 4'),
        (dict(rank=4, use=0), UserError, r'use is 0; it must be at least 1'),
        (dict(rank=0), UserError, r'rank is 0'),
        (dict(at='norm'), NoSiteError, r"DyLoRA needs a weight matrix, but 'blocks\.0\.norm1'"),
    ],
    ids=str,
)
def test_refusal_says_what_was_given(config, error, text):
    backbone = tiny('vit')
    with pytest.raises(error, match='(?s)' + text):
        TUNERS.build(dict(type='DyLoRA', **config)).attach(backbone)
    assert not any(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize('b', [0, 5])
def test_use_rank_refuses_what_was_not_trained(b):
    _, tuner = tuned('vit', type='DyLoRA', rank=4, use=2)
    with pytest.raises(UserError, match=f'the rank to use is {b}; (allowed|it must be): 1 to 4'):
        tuner.use_rank(b)
    assert tuner.deltas['blocks/0/attn/qkv'].most == 2
