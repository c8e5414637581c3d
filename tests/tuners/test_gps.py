"""GPS: its update and its choice of connections, written out in float64 on a plain copy of the network."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from tests.nets import images, tiny, tuned
from vet.core.backbone import Backbone
from vet.core.tuner import Tuner
from vet.errors import NoSiteError, UserError
from vet.registry import TUNERS

# the second and third with depthwise convolutions
FAMILIES = ('vit', 'mobilenet', 'convnext', 'torchvision-vit')
LABELS = torch.tensor([2, 0, 2, 7, 0, 1])


def plain(family: str) -> nn.Module:
    return tiny(family).eval().double().network


def names(key: str) -> tuple[str, str]:
    """The parameter paths of a delta's weight and bias; a packed projection's are no module's."""
    path, joint = key.replace('/', '.'), '_' if key.endswith('in_proj') else '.'
    return f'{path}{joint}weight', f'{path}{joint}bias'


def attached(family: str, **config: object) -> tuple[Backbone, Tuner]:
    backbone, tuner = tiny(family).eval(), TUNERS.build(dict(type='GPS', **config))
    tuner.attach(backbone)
    backbone.double(), tuner.double()
    return backbone, tuner


def contrastive_loss(features: torch.Tensor, labels: list[int]) -> torch.Tensor:
    """Khosla et al., eq. 2, one anchor and one positive at a time."""
    z = [f / f.norm() for f in features]
    terms = []
    for i, label in enumerate(labels):
        others = sum(torch.exp(z[i] @ z[a] / 0.07) for a in range(len(z)) if a != i)
        positives = [p for p in range(len(z)) if p != i and labels[p] == label]
        terms.append(
            -sum(torch.log(torch.exp(z[i] @ z[p] / 0.07) / others) for p in positives) / len(positives)
        )
    return sum(terms) / len(terms)


@pytest.mark.parametrize('family', FAMILIES)
def test_selected_weights_and_biases_alone_change(family):
    backbone, tuner = tuned(family, type='GPS', k=2)
    net, x = plain(family), images(3).double()
    frozen = net(x)
    for key, delta in tuner.deltas.items():
        weight, bias = (net.state_dict().get(name) for name in names(key))
        by_output = weight.view(len(weight), -1)
        for i in range(len(by_output)):
            for j, value in zip(delta.index[i].tolist(), delta.values[i].detach()):
                by_output[i, j] += value
        assert (bias is None) == (delta.shift is None)
        if bias is not None:
            bias += delta.shift.detach()
    expected = net(x)
    assert (expected - frozen).abs().max() > 1e-2
    assert torch.allclose(backbone(x), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize('family', FAMILIES)
def test_before_prepare_the_largest_weights_are_chosen(family):
    _, tuner = attached(family, k=2, bias=False)
    net = plain(family)
    for key, delta in tuner.deltas.items():
        rows = net.get_parameter(names(key)[0]).flatten(1).abs()
        assert (
            delta.index.tolist() == rows.argsort(1, descending=True)[:, :2].sort(1).values.tolist()
            and delta.shift is None
        )


@pytest.mark.parametrize('family', FAMILIES)
def test_prepare_chooses_the_largest_gradients_of_the_contrastive_loss(family):
    backbone, tuner = attached(family, k=2)
    net, x = plain(family).requires_grad_(True), images(6).double()
    for part in (slice(4), slice(4, 6)):
        contrastive_loss(net(torch.cat([x[part], x[part].flip(-1)])), LABELS[part].tolist() * 2).backward()
    for module in backbone.train().modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5  # of which the choice knows nothing
    tuner.prepare([(x[:4], LABELS[:4]), (x[4:], LABELS[4:])])
    assert len(tuner.deltas) == len(backbone.sites.find(['stem', 'weight']))
    for key, delta in tuner.deltas.items():
        rows = net.get_parameter(names(key)[0]).grad.flatten(1).abs()
        assert all(len(set(row)) == 2 for row in delta.index.tolist())
        chosen = rows.gather(1, delta.index.long())  # their sizes: a dead neuron's gradients are all zero
        assert torch.allclose(
            chosen.sort(1, descending=True).values, rows.sort(1, descending=True).values[:, :2], rtol=1e-9
        )


def test_prepare_leaves_all_else_as_it_was():
    backbone, tuner = attached('resnet')
    backbone.train()
    modes = [module.training for module in backbone.modules()]
    state = {name: value.clone() for name, value in backbone.network.state_dict().items()}
    features = backbone(images(2).double())
    with pytest.raises(ZeroDivisionError):
        tuner.prepare((images(4).double(), LABELS[:4]) if i == 0 else 1 / 0 for i in range(2))
    for choose in (lambda: None, lambda: tuner.prepare([(images(6).double(), LABELS)])):
        choose()
        assert not any(p.requires_grad for p in backbone.parameters())
        assert not any(p.grad is not None for p in [*backbone.parameters(), *tuner.parameters()])
        assert [module.training for module in backbone.modules()] == modes
        assert all(torch.equal(value, state[name]) for name, value in backbone.network.state_dict().items())
        assert torch.equal(backbone(images(2).double()), features)


def test_prepare_beside_another_tuner_keeps_what_trains_training():
    backbone, tuner = attached('vit')
    TUNERS.build(dict(type='Partial')).attach(backbone)
    trains = {name for name, p in backbone.named_parameters() if p.requires_grad}
    tuner.prepare([(images(6).double(), LABELS)])
    assert trains and {name for name, p in backbone.named_parameters() if p.requires_grad} == trains


def test_choice_is_saved_small_copied_and_pickled():
    _, tuner = attached('vit', k=3)
    first = {name: value.clone() for name, value in tuner.state().items()}
    tuner.prepare([(images(6).double(), LABELS)])
    state = tuner.state()
    index = state['deltas.blocks.1.mlp.fc1.index']
    assert not torch.equal(index, first['deltas.blocks.1.mlp.fc1.index']) and index.dtype == torch.int32
    assert {name.rpartition('.')[2] for name in state} == {'values', 'index', 'shift'}
    assert sum(value.numel() for value in state.values()) < 0.3 * sum(
        p.numel() for p in tuner.backbone.parameters()
    )
    for again in (copy.deepcopy(tuner), pickle.loads(pickle.dumps(tuner))):
        assert torch.equal(again.state()['deltas.blocks.1.mlp.fc1.index'], index)
        again.prepare([(images(6, seed=5).double(), LABELS)])
        assert not torch.equal(again.state()['deltas.blocks.1.mlp.fc1.index'], index)
    assert torch.equal(tuner.state()['deltas.blocks.1.mlp.fc1.index'], index)


@pytest.mark.parametrize(
    'config, count',
    [
        (dict(), 167_424),
        (dict(bias=False), 83_712),
        (dict(k=3), 334_848),
        (dict(k=[0] * 11 + [1], bias=False, at='weight'), 6_912),
    ],
    ids=str,
)
def test_counts_on_vit_b16(config, count, count_on_vit_b16):
    assert count_on_vit_b16(type='GPS', **config) == count


@pytest.mark.parametrize(
    'config, family, error, text',
    [
        (dict(k=0), 'vit', UserError, r'k is 0; it must be at least 1'),
        (
            dict(k=10, at='*.conv_dw'),
            'mobilenet',
            NoSiteError,
            r"GPS needs .* with 10 inputs .*'blocks\.0\.0\.conv_dw' \(Conv2d, which takes",
        ),
        (
            dict(at='norm'),
            'vit',
            NoSiteError,
            r"GPS needs a weight matrix .*'blocks\.0\.norm1' \(LayerNorm, which takes \(17, 32\)",
        ),
        (dict(at='block'), 'vit', NoSiteError, r"'blocks\.0' \(Block, .*\) has no weight"),
        (dict(images=0), 'vit', UserError, r'images is 0; it must be at least 1'),
    ],
    ids=str,
)
def test_refusals(config, family, error, text):
    with pytest.raises(error, match=text):
        TUNERS.build(dict(type='GPS', **config)).attach(tiny(family))


def test_one_image_is_the_least_to_choose_by():
    assert TUNERS.build(dict(type='GPS', images=1)).images == 1


def test_one_image_a_batch_has_nothing_to_compare():
    _, tuner = attached('vit')
    with pytest.raises(
        UserError, match=r'GPS compares the images of a batch, but in 3 images .*batch_size_per_gpu to 2'
    ):
        tuner.prepare((images(1, seed=seed).double(), torch.tensor([seed])) for seed in range(3))


def test_loss_of_a_worked_example():
    """Two orthogonal pairs: each anchor has one positive at cosine 1 and two others at 0."""
    from vet.core.contrast import contrastive_loss

    features = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    expected = -math.log(math.e / (math.e + 2))
    assert contrastive_loss(features, torch.tensor([4, 9, 4, 9]), temperature=1.0).item() == pytest.approx(
        expected, abs=1e-12
    )
