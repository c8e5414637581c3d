"""Every tuner under bf16 autocast on a ViT: what it computes and its gradients stay near float32's, and its
numbers float32.

Tolerance: five times what bf16 does to the frozen network under the same head.
"""

import functools

import pytest
import torch

from tests.contract.cases import CASES, Case
from tests.contract.runs import LABELS, Run, gradients, logits, run
from tests.nets import images
from vet.core.reweight import Reweight

TIMES = 5


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


@functools.cache
def frozen_error() -> float:
    return error(
        in_bf16(run(Case('LinearProbe'), 'vit').model)[0], logits(run(Case('LinearProbe'), 'vit').model)
    )


def in_bf16(model) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and gradients, computed within one autocast, as in training."""
    with torch.autocast('cpu', torch.bfloat16):
        _, found = gradients(model, images(6), LABELS)
        return logits(model), found


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


@pytest.mark.parametrize('case', [case for case in CASES if case.on is None or 'vit' in case.on], ids=str)
def test_bf16_autocast_stays_near_float32(case):
    ran = run(case, 'vit')
    if not isinstance(ran, Run):
        pytest.skip('refuses')
    out, found = in_bf16(ran.model)
    assert out.dtype == torch.float32 and 1e-3 < frozen_error() < 0.05
    assert error(out, logits(ran.model)) < TIMES * frozen_error()
    assert {parameter.dtype for parameter in ran.model.trainable().values()} == {torch.float32}
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in found.values())
    _, exact = gradients(ran.model, images(6), LABELS)
    assert error(flat(found), flat(exact)) < TIMES * frozen_error()


@pytest.mark.parametrize('case', [case for case in CASES if case.on is None or 'vit' in case.on], ids=str)
def test_an_update_of_a_bf16_weight_is_a_bf16_weight(case):
    """A run under autocast may keep the frozen weights in bf16, and a user may turn her network alone into bf16.
    The trained numbers stay float32.
    """
    ran = run(case, 'vit')
    if not isinstance(ran, Run):
        pytest.skip('refuses')
    for edit in (edit for tuner in ran.model.tuners for edit in tuner._edits if isinstance(edit, Reweight)):
        weight, bias = (edit.host.get_parameter(name) for name in (edit.weight_name, edit.bias_name))
        for is_on in (True, False):
            with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, is_on):
                found = edit.delta.eval()(edit.output_first(weight).bfloat16(), bias.bfloat16())
            assert [tensor.dtype for tensor in found] == [torch.bfloat16] * 2
