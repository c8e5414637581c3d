"""Values that no other test looks at: merging in train mode, what tasks own, lists of depths, DoRA
where nothing splits.
"""

import pytest
import torch
from torch import nn

from tests.contract.runs import logits, with_head
from tests.nets import tiny
from vet.core.assemble import build_classifiers
from vet.core.low_rank import DoRA
from vet.errors import UserError
from vet.registry import TUNERS


@pytest.mark.parametrize(
    'config',
    [
        dict(type='DyLoRA', rank=4, at='weight'),
        dict(type='AdaLoRA', rank=3, target=2, at='weight'),
        dict(type='LoRA', rank=2, dropout=0.5),
    ],
    ids=str,
)
def test_a_model_in_train_mode_is_merged_as_it_evaluates(config):
    torch.manual_seed(0)
    model = with_head(tiny('vit'), [TUNERS.build(config)])
    with torch.no_grad():
        for parameter in model.tuners[0].parameters():
            parameter.normal_(0, 0.2)
        for delta in model.tuners[0].deltas.values():
            if config['type'] == 'DyLoRA':
                delta.current.fill_(1)
            if config['type'] == 'AdaLoRA':
                delta.kept[0] = False
    evaluated = logits(model.eval())
    model.train()
    network = model.merge()
    assert model.tuners[0].training
    assert torch.allclose(logits(model.eval()), evaluated, rtol=1e-4, atol=1e-5)
    model.unmerge()
    assert network is model.backbone.network


@pytest.mark.parametrize(
    'config, own',
    [
        (dict(type='LoRA', rank=2, variant='dora'), {'m'}),
        (dict(type='GPS', at='attn.qkv'), {'values'}),
        (dict(type='SCT', channels=4), {'linear.weight', 'linear.bias'}),
        (dict(type='LoRA', rank=2, variant='pissa'), {'A', 'B'}),
    ],
    ids=lambda value: value['type'] if isinstance(value, dict) else '',
)
def test_tasks_never_share_what_belongs_to_one_frozen_weight(config, own):
    tasks = {name: (tiny('vit'), dict(type='Linear'), ['a', 'b']) for name in ('one', 'two')}
    tuners = [config, dict(type='LoRA', rank=1, at='mlp.fc1')]
    model = build_classifiers(tasks, tuners, '.*')
    names = [name for name in model.trainable() if name.startswith('tuners')]
    for name in names:
        is_own = any(name.endswith(f'.{leaf}') for leaf in own) and 'fc1' not in name
        assert name.startswith(('tuners.one.', 'tuners.two.')) == is_own, name
    assert any(name.startswith('tuners.one.') for name in names)
    first, second = (model.tasks[task].trainable() for task in ('one', 'two'))
    for name in first:
        if name.startswith('tuners.0.') and any(name.endswith(f'.{leaf}') for leaf in own):
            assert first[name] is not second[name]


@pytest.mark.parametrize('length', [1, 2, 4])
def test_a_list_by_depth_of_another_length_is_refused(length):
    with pytest.raises(UserError, match=f'rank has {length} values, but the backbone has 3 blocks'):
        TUNERS.build(dict(type='LoRA', rank=[2] * length)).attach(tiny('vit'))


def test_dora_norms_are_constant_in_the_backward_pass_where_it_forms_the_weight():
    torch.manual_seed(0)
    weight = torch.randn(6, 4, dtype=torch.float64)
    delta = DoRA(weight.shape, 2).double()
    delta.start(weight, None)
    nn.init.normal_(delta.B)
    formed, _ = delta(weight, None)
    factor = torch.randn(6, 4, dtype=torch.float64)
    mine = torch.autograd.grad((formed * factor).sum(), [delta.m, delta.A, delta.B])
    V = weight + delta.B @ delta.A
    expected = delta.m[:, None] * V / V.detach().norm(dim=1, keepdim=True)
    wanted = torch.autograd.grad((expected * factor).sum(), [delta.m, delta.A, delta.B])
    assert all(torch.allclose(a, b) for a, b in zip(mine, wanted))
