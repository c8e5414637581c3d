"""Merged, a tuned backbone is a plain network; unmerged, it is what it was."""

import pytest
import torch

from tests.contract.cases import CASES
from tests.contract.runs import differing, logits, run, snapshot, trained
from tests.nets import tiny
from vet.errors import UserError


def test_merged_computes_the_same_as_a_plain_network(ran, case, family):
    model = trained(case, family)
    if not model.tuners[0].mergeable:
        with pytest.raises(UserError, match=f'{case.name} cannot be merged'):
            model.merge()
        return
    network = model.merge()
    unmerged, merged = logits(ran.model.backbone), logits(network)
    assert (merged - unmerged).abs().max() <= 1e-5 * unmerged.abs().max()

    assert not [
        name
        for name, part in network.named_modules()
        if '_reweighted' in part.__dict__ or 'forward' in part.__dict__
    ]
    assert list(network.state_dict()) == list(ran.frozen)
    untouched = tiny(family).network.eval()
    untouched.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(logits(untouched), merged)


def test_unmerge_is_bit_equal(ran, case, family):
    model = trained(case, family)
    if not model.tuners[0].mergeable:
        pytest.skip('not mergeable')
    model.merge()
    model.unmerge()
    assert torch.equal(logits(model), logits(ran.model))
    model.tuners[0].detach()
    assert not differing(snapshot(model.backbone.network), ran.frozen)


def test_merge_writes_something_where_there_is_something_to_write():
    case = next(case for case in CASES if case.label == 'weight')
    model = trained(case, 'vit')
    changed = differing(snapshot(model.merge()), run(case, 'vit').frozen)
    assert len(changed) == 12


def test_unmerge_without_merge_changes_nothing():
    case = next(case for case in CASES if case.label == 'weight')
    model = trained(case, 'vit')
    model.unmerge()
    assert torch.equal(logits(model), logits(run(case, 'vit').model))


def test_merged_model_still_saves_what_was_trained():
    case = next(case for case in CASES if case.label == 'weight')
    model = trained(case, 'vit')
    before = {name: value.clone() for name, value in model.trained_state().items()}
    model.merge()
    assert not differing(model.trained_state(), before)
