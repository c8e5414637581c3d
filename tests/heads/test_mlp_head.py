"""The MLP head: its equation, its statistics, its precision and its refusals."""

import copy

import pytest
import torch

from vet.errors import UserError
from vet.registry import HEADS

C, HIDDEN, K = 6, 10, 3


def head(**config: object):
    torch.manual_seed(0)
    made = HEADS.build(
        dict(dict(type='MLP', num_classes=K, hidden=HIDDEN, dropout=0.0), **config), in_features=C
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
        for buffer in made.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return made


def expected(mlp, f: torch.Tensor, training: bool) -> torch.Tensor:
    """The head's equation in float64, with a batch's own statistics in training and the running ones
    after it.
    """
    first, _, inner, _, second, _, last = mlp.layers

    def norm(layer, x):
        mean, var = (
            (x.mean(0), x.var(0, unbiased=False)) if training else (layer.running_mean, layer.running_var)
        )
        return layer.weight * (x - mean) / (var + layer.eps).sqrt() + layer.bias

    h = norm(second, (norm(first, f.double()) @ inner.weight.double().T + inner.bias).clamp_min(0))
    return h @ last.weight.double().T + last.bias


@pytest.mark.parametrize('training', [True, False])
def test_logits_follow_the_equation(training):
    mlp, f = head(), torch.randn(7, C, generator=torch.Generator().manual_seed(1))
    wanted = expected(copy.deepcopy(mlp), f, training)
    assert torch.allclose(mlp.train(training)(f).double(), wanted, atol=1e-4)
    assert (
        sum(p.numel() for p in mlp.parameters()) == 2 * C + C * HIDDEN + HIDDEN + 2 * HIDDEN + HIDDEN * K + K
    )


def test_first_dropout_has_half_the_rate_and_only_in_training():
    mlp = head(dropout=0.5)
    assert [layer.p for layer in mlp.layers if isinstance(layer, torch.nn.Dropout)] == [0.25, 0.5]
    f = torch.ones(32, C) + torch.arange(32)[:, None]
    assert not torch.equal(mlp.train()(f), mlp.train()(f)) and torch.equal(mlp.eval()(f), mlp.eval()(f))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('training', [True, False])
def test_computes_in_float32_under_half_precision(dtype, training):
    mlp, f = head().train(training), torch.randn(4, C).to(dtype)
    with torch.autocast('cpu', dtype):
        logits = mlp(f)
    assert logits.dtype == torch.float32 and torch.equal(logits, mlp(f.float()))


def test_running_statistics_follow_training_and_are_saved():
    mlp = head().train()
    before = {name: buffer.clone() for name, buffer in mlp.named_buffers()}
    mlp(torch.randn(8, C))
    assert all(not torch.equal(buffer, before[name]) for name, buffer in mlp.named_buffers())
    other = head()
    other.load_state_dict(mlp.state_dict())
    f = torch.randn(3, C)
    assert torch.equal(other.eval()(f), mlp.eval()(f))


def test_batch_of_one_image_is_normalised_by_the_running_statistics():
    mlp, f = head(), torch.randn(1, C)
    wanted = mlp.eval()(f)
    before = {name: buffer.clone() for name, buffer in mlp.named_buffers()}
    logits = mlp.train()(f)
    logits.sum().backward()
    assert torch.equal(logits, wanted) and all(
        torch.equal(b, before[name]) for name, b in mlp.named_buffers()
    )
    assert mlp.layers[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize('config', [dict(num_classes=0), dict(hidden=0), dict(dropout=1.5)], ids=str)
def test_impossible_sizes_are_refused(config):
    with pytest.raises(UserError, match=next(iter(config))):
        head(**config)
