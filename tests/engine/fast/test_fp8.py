"""Frozen products in float8: the numbers that the definition gives, where they are taken, and a run
that learns with them.
"""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.contract.cases import CASES
from tests.contract.runs import LABELS, Run, differing, distance, gradients, in_autocast, logits, run, trained
from tests.engine.fast.test_frozen_in_bf16 import parameters
from tests.engine.runs import ended, ended_after_a_break, small
from tests.nets import images
from vet.engine.fast import fp8
from vet.engine.fast.fp8 import FORMAT, Product, products_in_fp8, refuse_without_fp8, rounded
from vet.engine.fast.frozen_in_bf16 import weights_stored_in
from vet.errors import UserError

CPU = torch.device('cpu')


def has_fp8() -> bool:
    try:
        refuse_without_fp8(CPU)
    except UserError:
        return False
    return True


needs_fp8 = pytest.mark.skipif(
    not has_fp8(), reason='this torch has no product of float8 with scales by rows on a CPU'
)


def case(label):
    return next(case for case in CASES if str(case) == label)


def taken(model) -> set[str]:
    return {
        name.removeprefix('blocks.')
        for name, module in model.backbone.network.named_modules()
        if type(module) is nn.Linear
        and (
            module._reweighted.class_forward if '_reweighted' in vars(module) else vars(module).get('forward')
        )
    }


def in_fp8(model):
    with products_in_fp8(model), weights_stored_in(torch.bfloat16, model):
        return in_autocast(model)


def test_a_row_is_rounded_by_its_own_scale():
    x = torch.randn(5, 32) * torch.logspace(-6, 6, 5)[:, None]
    x[2], x[3] = 0, 1e-39  # nothing, and less than a normal number
    values, scales = rounded(x)
    assert values.dtype == FORMAT and scales.shape == (5, 1) and scales.dtype == torch.float32
    assert values[[0, 1, 4]].float().abs().amax(1).tolist() == [448, 448, 448] and not values[2].float().any()
    again = values.float() * scales
    # 3 bits, then the smallest step
    assert ((again - x).abs() <= x.abs() / 16 + x.abs().amax(1, keepdim=True) / 448 * 2**-10 + 1e-38).all()
    assert (again - x).abs().sum() > 0


@needs_fp8
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_the_product_and_its_gradient_are_those_of_rounded_matrices(bias, dtype):
    torch.manual_seed(0)
    x, W = torch.randn(40, 32).to(dtype), torch.randn(48, 32)
    b, gy = (torch.randn(48).bfloat16() if bias else None), torch.randn(40, 48).bfloat16()

    def whole(matrix):
        values, scales = rounded(matrix)
        return values.double() * scales

    x = x.requires_grad_()
    y = Product.apply(x, *rounded(W), *rounded(W.T), b)
    [gx] = torch.autograd.grad(y, x, gy)
    assert y.dtype == torch.bfloat16 and gx.dtype == dtype
    assert torch.allclose(
        y.double(),
        F.linear(whole(x.detach()), whole(W), None if b is None else b.double()),
        rtol=2**-7,
        atol=0.02,
    )
    assert torch.allclose(gx.double(), whole(gy) @ whole(W.T).T, rtol=2**-7, atol=0.02)
    assert (
        0.01
        < (y.double() - F.linear(x.detach().double(), W.double(), None if b is None else b.double())).norm()
        / y.norm()
        < 0.06
    )


@needs_fp8
@pytest.mark.parametrize(
    'case',
    [
        pytest.param(
            case,
            id=str(case),
            marks=[] if str(case) in ('LoRA', 'LoRA-weight', 'Adapter', 'Partial') else pytest.mark.slow,
        )
        for case in CASES
        if case.on is None or 'vit' in case.on
    ],
)
def test_gradients_stay_near_float32(case):
    if not isinstance(run(case, 'vit'), Run):
        pytest.skip('refuses')
    model = trained(case, 'vit').train()
    before = parameters(model)
    torch.manual_seed(0)  # some tuners drop ranks at random; in_autocast has the same seed
    _, exact = gradients(model, images(6), LABELS)
    _, plain = in_autocast(model)
    try:
        _, found = in_fp8(model)
    except UserError as error:
        pytest.skip(str(error))  # every linear layer trains, or is read
    nothing = {name: torch.zeros_like(gradient) for name, gradient in exact.items()}
    assert distance(plain, exact) < distance(found, exact) < 0.35 * distance(exact, nothing)
    assert not differing(before, parameters(model))


@pytest.mark.slow
@needs_fp8
def test_compiled_in_one_graph():
    model = trained(case('LoRA'), 'vit').train()
    _, exact = gradients(model, images(6), LABELS)
    names, trained_parameters = zip(*model.trainable().items())
    with (
        products_in_fp8(model),
        weights_stored_in(torch.bfloat16, model),
        torch.autocast('cpu', torch.bfloat16),
    ):
        torch.compiler.reset()
        fast = torch.compile(model, fullgraph=True, backend='aot_eager')
        found = dict(
            zip(names, torch.autograd.grad(F.cross_entropy(fast(images(6)), LABELS), trained_parameters))
        )
    assert distance(found, exact) < 0.35 * distance(
        exact, {name: torch.zeros_like(g) for name, g in exact.items()}
    )


def test_frozen_linear_layers_that_nobody_reads_are_taken():
    layers = {f'{i}.{layer}' for i in range(3) for layer in ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2')}
    for label, left in (
        ('LoRA', set()),
        ('Adapter', set()),
        ('BitFit', layers),
        ('Full', layers),
        ('LoRA-dora-qv', {f'{i}.attn.qkv' for i in range(3)}),
        ('Partial', {name for name in layers if name.startswith('2.')}),
    ):
        model = trained(case(label), 'vit')
        with (
            nullcontext()
            if left != layers
            else pytest.raises(UserError, match='no linear layer of the backbone fits')
        ):
            with products_in_fp8(model):
                assert taken(model) == layers - left, label
        assert not taken(model)


@needs_fp8
def test_evaluation_and_what_is_not_autocast_stay_exact():
    model = trained(case('LoRA'), 'vit')
    expected = logits(model)
    with products_in_fp8(model):
        assert logits(model.train()).equal(expected)  # not under autocast
        with torch.autocast('cpu', torch.bfloat16):
            rough = logits(model)
            evaluated = logits(model.eval())
    with torch.autocast('cpu', torch.bfloat16):
        assert logits(model).equal(evaluated) and not evaluated.equal(rough)


@needs_fp8
@pytest.mark.slow
def test_a_run_learns_and_ends_with_exact_weights(tmp_path):
    runs = {
        precision: small(tmp_path / precision, **{'train.precision': precision, 'train.max_epochs': 8})
        for precision in ('bf16', 'fp8')
    }
    before = parameters(runs['fp8'].model)
    found = {precision: run.train() for precision, run in runs.items()}
    assert abs(found['fp8']['accuracy'] - found['bf16']['accuracy']) < 0.15
    assert found['fp8']['accuracy'] > found['fp8']['before']['accuracy'] + 0.2
    assert not differing(parameters(runs['fp8'].model), before)
    assert differing(*(run.model.trained_state() for run in runs.values()))


@needs_fp8
@pytest.mark.slow
def test_a_run_goes_on_as_if_unbroken(tmp_path):
    options = {'train.precision': 'fp8', 'train.max_epochs': 2}
    expected = ended(small(tmp_path / 'whole', **options))
    assert ended_after_a_break(lambda resume: small(tmp_path / 'broken', resume, **options), at=5) == expected


@needs_fp8
def test_what_it_trains_on_is_no_cached_feature(tmp_path, capsys):
    small(
        tmp_path / 'run',
        **{
            'model.tuners': [dict(type='LinearProbe')],
            'train.precision': 'fp8',
            'train.cache_features': True,
            'train.max_epochs': 1,
        },
    ).train()
    said = capsys.readouterr().err
    assert (
        'has no effect on the train images: products of float8 are for training' in said
        and 'on the test' not in said
    )


def test_a_device_without_it_is_refused(tmp_path, monkeypatch):
    def none(*args):
        raise NotImplementedError('no such kernel\nat all')

    monkeypatch.setattr(fp8, '_product', none)
    trainer = small(tmp_path / 'run', **{'train.precision': 'fp8'})
    assert trainer.evaluate()['accuracy'] > 0  # which needs none
    with pytest.raises(
        UserError,
        match=r'"fp8", but cpu with torch .* cannot multiply .* \(no such kernel\)\. .*Set train\.precision to "bf16"',
    ):
        trainer.train()
