"""The four edits one by one, on modules small enough to compute by hand."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tests.nets import tiny
from vet.core.edits import FlowEdit, Thaw
from vet.core.reweight import Reweight


class Scale(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, weight, bias):
        return weight * self.factor, None if bias is None else bias + self.factor


class Double(nn.Module):
    def forward(self, *tensors):
        return 2 * tensors[-1]


def linear() -> nn.Linear:
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        module.bias.copy_(torch.tensor([10.0, 20.0]))
    return module


X = torch.tensor([[1.0, 1.0]])


def test_reweights_at_one_module_act_in_order_and_undo_in_any():
    module = linear()
    edits = [Reweight(module, 'weight', 'bias', Scale(factor)) for factor in (2.0, 3.0)]
    for edit in edits:
        edit.apply()
    assert module(X).tolist() == [[6 * 3 + 15, 6 * 7 + 25]]
    edits[0].undo()
    assert module(X).tolist() == [[3 * 3 + 13, 3 * 7 + 23]]
    edits[1].undo()
    assert module(X).tolist() == [[13, 27]]
    assert 'forward' not in module.__dict__


def test_reweight_of_a_convolution_without_bias():
    conv = nn.Conv2d(1, 1, 1, bias=False)
    Reweight(conv, 'weight', 'bias', Scale(2.0)).apply()
    x = torch.ones(1, 1, 2, 2)
    assert torch.equal(conv(x), 2 * conv.weight.expand(1, 1, 2, 2))


def test_hooks_of_a_reweighted_module_still_run():
    module, seen = linear(), []
    Reweight(module, 'weight', 'bias', Scale(2.0)).apply()
    module.register_forward_hook(lambda *_: seen.append(1))
    module(X)
    assert seen == [1]


def test_reweighted_module_gives_its_own_output_after_copy_and_pickle():
    module = linear()
    Reweight(module, 'weight', 'bias', Scale(2.0)).apply()
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        with torch.no_grad():
            module.weight.fill_(1.0)
        assert again(X).tolist() == [[2 * 3 + 12, 2 * 7 + 22]]
        module.load_state_dict(linear().state_dict())


def test_before_and_after_see_input_and_output():
    module = linear()
    before, after = FlowEdit.before(module, Double()), FlowEdit.after(module, Double())
    assert module(X).tolist() == [[2 * (2 * 3 + 10), 2 * (2 * 7 + 20)]]
    before.undo()
    assert module(X).tolist() == [[26, 54]]
    after.undo()
    assert module(X).tolist() == [[13, 27]]


def test_thaw_trains_a_copy_and_undo_brings_the_original_back():
    module = linear().requires_grad_(False)
    original = module.weight
    edit = Thaw.of(module, 'weight', 'weight')
    assert (
        module.weight is not original and module.weight.requires_grad and torch.equal(module.weight, original)
    )
    with torch.no_grad():
        module.weight.zero_()
    assert module(X).tolist() == [[10, 20]]
    edit.undo()
    assert module.weight is original and not original.requires_grad and module(X).tolist() == [[13, 27]]


def test_thaw_of_a_buffer_stays_a_buffer():
    norm = nn.BatchNorm2d(2)
    edit = Thaw.of(norm, 'running_mean', 'running_mean')
    norm.running_mean.fill_(7.0)
    assert norm.state_dict()['running_mean'].tolist() == [7, 7]
    edit.undo()
    assert norm.state_dict()['running_mean'].tolist() == [0, 0]


def test_parameter_directly_at_the_network_is_saved_under_its_own_name():
    from vet.registry import TUNERS

    backbone = tiny('vit')
    tuner = TUNERS.build(dict(type='Full'))
    tuner.attach(backbone)
    assert {name for name, _ in tuner.trainable()} == {
        f'thawed.{name}' for name, _ in backbone.network.named_parameters()
    }


class Biased(nn.Module):
    """A module with a method that gives a bias of positions."""

    def bias(self):
        return torch.ones(2)

    def forward(self, x):
        return x + self.bias()


def written_method(module):
    module.bias = own = lambda: 10 * Biased.bias(module)
    return own


@pytest.mark.parametrize('has_own', [False, True])
def test_the_result_of_a_method_is_edited_also_if_the_instance_has_the_method(has_own):
    module, x = Biased(), torch.zeros(2)
    own = written_method(module) if has_own else None
    plain = module(x)
    edits = [FlowEdit.result(module, Double(), 'bias') for _ in range(2)]
    assert torch.equal(module(x), 4 * plain)
    edits[0].rest()
    edits[0].undo()
    assert torch.equal(module(x), 2 * plain)
    edits[0].resume()
    for edit in edits:
        edit.undo()
    assert torch.equal(module(x), plain) and vars(module).get('bias') is own


def test_a_method_that_other_code_writes_around_an_edit_stays():
    module, x = Biased(), torch.zeros(2)
    edit = FlowEdit.result(module, Double(), 'bias')
    inner = module.bias
    module.bias = outer = lambda: 3 * inner()
    later = FlowEdit.result(module, Double(), 'bias')
    assert torch.equal(module(x), torch.full((2,), 12.0))
    copied = pickle.loads(pickle.dumps(FlowEdit.result(Biased(), Double(), 'bias')))
    copied.undo()
    assert 'bias' not in vars(copied.module)
    later.undo()
    edit.undo()
    assert vars(module)['bias'] is outer and torch.equal(module(x), torch.full((2,), 3.0))
