"""LoRA against its equation written out in float64, against PEFT, and against the published counts."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.nets import VIT, images, randomised, timm_net, tiny
from vet.backbones.roles import find_layout
from vet.core.backbone import Backbone, Preprocessing
from vet.core.tuner import Tuner
from vet.errors import NoSiteError, UnknownNameError, UserError
from vet.registry import TUNERS


def lora(**config: object) -> Tuner:
    return TUNERS.build(dict(type='LoRA', **config))


class Net(nn.Module):
    """A Linear under one convolution, each a block's part: maps (B, 3, 9, 9) to (B, 6)."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.conv, self.fc = conv, nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(self.stem(x)).mean((2, 3)))


def tuned(
    conv: nn.Module, at: str, **config: object
) -> tuple[nn.Module, nn.Module, torch.Tensor, torch.Tensor]:
    """A float64 module with LoRA at it, its weights untouched, its A and its B (random)."""
    torch.manual_seed(0)
    backbone = Backbone(
        Net(conv), find_layout(Net(conv)), Preprocessing(size=(9, 9)), dict(type='test', name='net')
    )
    tuner = lora(at=at, **config)
    tuner.attach(backbone)
    backbone.double(), tuner.double()
    delta = tuner.deltas[at]
    with torch.no_grad():
        delta.B.normal_()
    return backbone.network.get_submodule(at), delta.A, delta.B


@pytest.mark.parametrize('alpha, scale', [(None, 1.0), (6, 2.0), (1.5, 0.5)])
def test_linear_is_W_x_plus_scaled_B_A_x(alpha, scale):
    module, A, B = tuned(nn.Conv2d(4, 8, 3), 'fc', rank=3, alpha=alpha)
    assert A.shape == (3, 8) and B.shape == (6, 3)
    x = torch.randn(5, 7, 8, dtype=torch.float64)
    expected = torch.empty(5, 7, 6, dtype=torch.float64)
    for b in range(5):
        for n in range(7):
            expected[b, n] = module.weight.mv(x[b, n]) + module.bias + scale * B.mv(A.mv(x[b, n]))
    assert torch.allclose(module(x), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(stride=2),
        dict(padding=1, stride=2),
        dict(groups=2),
        dict(dilation=2, bias=False),
        dict(groups=4, padding=1),
        dict(padding=1, padding_mode='reflect'),
    ],
    ids=str,
)
def test_convolution_is_that_of_patches(options):
    conv = nn.Conv2d(4, 8, 3, **options)
    module, A, B = tuned(conv, 'conv', rank=2, alpha=3)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    mode = 'constant' if conv.padding_mode == 'zeros' else conv.padding_mode
    padded = nn.functional.pad(x, conv._reversed_padding_repeated_twice, mode)
    groups, out = conv.groups, []
    for g in range(groups):  # (B, in / groups kH kW, H' W') patches of the group's channels
        patches = nn.functional.unfold(padded.chunk(groups, 1)[g], 3, conv.dilation, 0, conv.stride)
        W, B_g = module.weight.chunk(groups)[g].flatten(1), B.chunk(groups)[g]
        out.append(W @ patches + 1.5 * B_g @ (A @ patches))
    y = module(x)
    expected = torch.cat(out, 1).view_as(y) + (0 if conv.bias is None else module.bias[:, None, None])
    assert torch.allclose(y, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize('parts', ['q', 'k', 'qv', 'vq', 'qkv'])
def test_parts_have_an_update_of_their_own_rows(parts):
    backbone = tiny('vit')
    tuner = lora(rank=2, alpha=4, parts=parts)
    tuner.attach(backbone)
    backbone.double(), tuner.double()
    qkv, delta = backbone.network.blocks[1].attn.qkv, tuner.deltas['blocks/1/attn/qkv']
    assert delta.A.shape == (2 * len(parts), 32) and delta.B.shape == (32 * len(parts), 2)
    with torch.no_grad():
        delta.B.normal_()
    x = torch.randn(3, 5, 32, dtype=torch.float64)
    expected = x @ qkv.weight.T + qkv.bias
    for i, part in enumerate(sorted(parts, key='qkv'.index)):
        rows = slice(32 * 'qkv'.index(part), 32 * ('qkv'.index(part) + 1))
        expected[..., rows] += 2.0 * x @ delta.A[2 * i : 2 * i + 2].T @ delta.B[32 * i : 32 * i + 32].T
    assert torch.allclose(qkv(x), expected, rtol=0, atol=1e-8)


def test_dropout_acts_on_the_updates_input_in_training_alone():
    module, A, B = tuned(nn.Conv2d(4, 8, 3), 'fc', rank=3, dropout=0.5)
    x = torch.ones(4000, 8, dtype=torch.float64)
    frozen = x @ module.weight.T + module.bias
    delta = module._reweighted.edits[0].delta.train()
    torch.manual_seed(0)
    update = module(x) - frozen
    torch.manual_seed(0)
    kept = nn.functional.dropout(x, 0.5)
    assert torch.allclose(update, kept @ A.T @ B.T, atol=1e-8)
    assert 0.45 < (kept == 0).double().mean() < 0.55
    delta.eval()
    assert torch.allclose(module(x) - frozen, x @ A.T @ B.T, atol=1e-8)


@pytest.mark.parametrize('train', [False, True])
def test_same_numbers_and_gradients_as_peft(train):
    import peft

    backbone = tiny('vit')
    reference = peft.get_peft_model(
        copy.deepcopy(backbone.network), peft.LoraConfig(r=4, lora_alpha=8, target_modules=['qkv'])
    )
    tuner = lora(rank=4, alpha=8)
    tuner.attach(backbone)
    torch.manual_seed(0)
    theirs = {}
    with torch.no_grad():
        for name, delta in tuner.deltas.items():
            layer = reference.base_model.model.get_submodule(name.replace('/', '.'))
            delta.B.normal_(0, 0.1)
            layer.lora_A.default.weight.copy_(delta.A)
            layer.lora_B.default.weight.copy_(delta.B)
            theirs[name] = (layer.lora_A.default.weight, layer.lora_B.default.weight)
    backbone.train(train), reference.train(train)
    ours, wanted = backbone(images(4)), reference(images(4))
    assert torch.allclose(ours, wanted, rtol=0, atol=1e-6)
    ours.square().sum().backward(), wanted.square().sum().backward()
    for name, delta in tuner.deltas.items():
        for mine, their in zip((delta.A, delta.B), theirs[name]):
            assert torch.allclose(mine.grad, their.grad, rtol=1e-4, atol=1e-4 * their.grad.abs().max())
    assert sum(p.numel() for _, p in tuner.trainable()) == sum(
        p.numel() for p in reference.parameters() if p.requires_grad
    )


class Made(TorchDispatchMode):
    """Counts the tensors of `numel` elements that operations make (views of others aside)."""

    def __init__(self, numel: int):
        super().__init__()
        self.numel, self.count = numel, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        is_view = any(alias.alias_info is not None for alias in function._schema.returns)
        self.count += not is_view and isinstance(out, torch.Tensor) and out.numel() == self.numel
        return out


@pytest.mark.parametrize('route, made', [('split', 0), ('whole', 1)])
def test_linear_route_makes_neither_the_updated_weight_nor_its_gradient(route, made):
    backbone = tiny('vit')
    tuner = lora(rank=2)
    tuner.attach(backbone)
    qkv = backbone.network.blocks[0].attn.qkv
    if route == 'whole':  # the control: what the count shows without the split
        qkv._reweighted.edits[0].delta.splits = lambda module: False
    x = torch.randn(7, 32, requires_grad=True)
    with Made(96 * 32) as seen:
        qkv(x).sum().backward()
    assert (seen.count > 0) == made
    assert tuner.deltas['blocks/0/attn/qkv'].B.grad.abs().sum() > 0


# Counts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'config, count',
    [
        (dict(type='LoRA', rank=8, parts='qv'), 294_912),
        (dict(type='LoRA', rank=10), 368_640),
        (dict(type='LoRA', rank=8, parts='qkv'), 442_368),
        (dict(type='LoRA', rank=[0] * 11 + [10]), 30_720),
        (dict(type='BitFit'), 102_912),
        (dict(type='Partial', blocks=1), 7_087_872),
        (dict(type='Partial', blocks=2, norm=True), 2 * 7_087_872 + 1_536),
    ],
    ids=str,
)
def test_published_counts_on_vit_b16(count_on_vit_b16, config, count):
    assert count_on_vit_b16(**config) == count


def ranks(tuner: Tuner) -> dict[str, int]:
    return {name.replace('/', '.'): delta.rank for name, delta in tuner.deltas.items()}


def test_rank_is_one_value_a_list_by_depth_or_a_dict_of_patterns():
    def given(rank: object, at: str = 'attn.qkv') -> dict[str, int]:
        tuner = lora(rank=rank, at=at)
        tuner.attach(tiny('vit'))
        return ranks(tuner)

    assert given(5) == {f'blocks.{i}.attn.qkv': 5 for i in range(3)}
    assert given([4, 0, 1]) == {'blocks.0.attn.qkv': 4, 'blocks.2.attn.qkv': 1}
    assert given({'blocks.[01].*': 2, 'attn.qkv': 7}) == {
        'blocks.0.attn.qkv': 2,
        'blocks.1.attn.qkv': 2,
        'blocks.2.attn.qkv': 7,
    }
    assert given({r'mlp\.fc[12]$': 3, 'blocks.0.attn.proj': 2}, 'weight') == {'blocks.0.attn.proj': 2} | {
        f'blocks.{i}.mlp.fc{j}': 3 for i in range(3) for j in (1, 2)
    }
    assert given(2, 'attn.qkv[-2:]') == {'blocks.1.attn.qkv': 2, 'blocks.2.attn.qkv': 2}
    assert given(2, 'blocks.*.mlp.fc1') == {f'blocks.{i}.mlp.fc1': 2 for i in range(3)}


@pytest.mark.parametrize(
    'rank, wanted',
    [
        ({'blocks.[0-3].*': 2, 'attn.qkv': 8}, [2] * 4 + [8] * 8),
        ({'blocks.1': 2, '.*': 4}, [4, 2] + [4] * 10),
        ({'*.qkv': 3}, [3] * 12),
        ({r'blocks\.1[01]?\.': 2, 'blocks': 1}, [1, 2] + [1] * 8 + [2, 2]),
    ],
    ids=str,
)
def test_a_pattern_is_a_path_first(rank, wanted):
    """A wildcard's dot is a dot: 'blocks.[0-3]' is not block 10."""
    tuner = lora(rank=rank)
    tuner.attach(timm_net('vit_tiny_patch16_224', img_size=32, patch_size=16, embed_dim=8, num_heads=2))
    assert list(ranks(tuner).values()) == wanted


def test_alpha_is_given_like_rank_and_is_the_rank_where_no_pattern_fits():
    tuner = lora(rank={'blocks.0': 2, '.*': 4}, alpha={'blocks.[01]': 8})
    tuner.attach(tiny('vit'))
    assert [delta.scale for delta in tuner.deltas.values()] == [4, 2, 1]


def test_place_named_twice_is_tuned_once():
    tuner = lora(rank=2, at=['attn.qkv', 'weight', 'blocks.0.attn.qkv'])
    tuner.attach(tiny('vit'))
    assert len(tuner.deltas) == 12


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'config, family, error, text',
    [
        (dict(rank=0), 'vit', UserError, r'rank is 0; it must be at least 1'),
        (dict(rank=-3), 'vit', UserError, r'rank is -3; it must be at least 1'),
        (
            dict(rank=2.5),
            'vit',
            UserError,
            r'rank is 2\.5; (allowed|it must be).* a (positive int|whole number)',
        ),
        (dict(rank=True), 'vit', UserError, r'rank is True; (allowed|it must be)'),
        (dict(rank=[1, 2]), 'vit', UserError, r'rank has 2 values, but the backbone has 3 blocks'),
        (
            dict(rank=[1, -2, 3]),
            'vit',
            UserError,
            r'rank is \[1, -2, 3\]; it must be a list .* at least 0 .*, but -2 is not',
        ),
        (dict(rank=[0, 0, 0]), 'vit', NoSiteError, r'LoRA has nothing to train at the 3 sites'),
        (
            dict(rank={'nowhere': 2}),
            'vit',
            UserError,
            r"rank has the pattern 'nowhere', which fits none of the 3 sites",
        ),
        (dict(alpha='a'), 'vit', UserError, "alpha is 'a'; (allowed:|it must be) a number"),
        (
            dict(rank={'.*': 2}, alpha={'block.7': 2}),
            'vit',
            UserError,
            r"alpha has the pattern 'block\.7', which fits none",
        ),
        (
            dict(rank={'*qkw': 2}),
            'vit',
            UserError,
            r"rank fits none of the 3 sites.*is '\*qkw', not a regular expression",
        ),
        (dict(rank=[1, 2, 3], at='stem'), 'vit', UserError, r"'patch_embed\.proj' .* lies in no block"),
        (
            dict(at='attn.qvk'),
            'vit',
            UnknownNameError,
            r"unknown role or module path 'attn\.qvk'.*Did you mean 'attn\.qkv'",
        ),
        (dict(at='attn.qkv'), 'resnet', UnknownNameError, r"'attn\.qkv'.*roles of resnet18 \(ResNet\)"),
        (dict(at='attn.qkv[7:]'), 'vit', NoSiteError, r"'attn\.qkv\[7:\]' matches no site: .* has 3 blocks"),
        (dict(at='attn.qkv[[1]'), 'vit', UserError, r'cannot read the place'),
        (
            dict(at='norm'),
            'vit',
            NoSiteError,
            r"LoRA needs a weight matrix, but 'blocks\.0\.norm1' \(LayerNorm, .*\(17, 32\)",
        ),
        (
            dict(at='block'),
            'vit',
            NoSiteError,
            r"'blocks\.0' \(Block, .*\(17, 32\) per image\) has no weight",
        ),
        (
            dict(parts='qv', at='mlp.fc1'),
            'vit',
            NoSiteError,
            r"LoRA needs for parts='qv' a projection.*'blocks\.0\.mlp\.fc1'",
        ),
        (
            dict(parts='qv', at='weight'),
            'resnet',
            NoSiteError,
            r"LoRA needs for parts='qv' a projection.*'layer1\.0\.conv1' \(Conv2d, .*\(64, 8, 8\)",
        ),
        (dict(parts='qz'), 'vit', UserError, r"parts is 'qz'; (allowed:|it must be) letters of \"qkv\""),
        (dict(parts='qq'), 'vit', UserError, r"parts is 'qq'"),
        (dict(dropout=1.0), 'vit', UserError, r'dropout is 1\.0; (allowed|it must be)'),
        (
            dict(dropout=0.1, at='weight'),
            'convnext',
            NoSiteError,
            r"dropout.*'stages\.0\.blocks\.0\.conv_dw' \(Conv2d",
        ),
        (dict(ranc=2), 'vit', UnknownNameError, r"option of tuner 'LoRA' 'ranc'. Did you mean 'rank'"),
    ],
    ids=str,
)
def test_refusal_says_what_was_given_and_what_is_allowed(config, family, error, text):
    backbone = tiny(family)
    before = copy.deepcopy(backbone.network.state_dict())
    with pytest.raises(error, match='(?s)' + text):
        lora(**config).attach(backbone)
    assert all(torch.equal(value, before[name]) for name, value in backbone.network.state_dict().items())
    assert not any(p.requires_grad for p in backbone.parameters())


def test_update_starts_at_zero_with_A_as_nn_linear_draws_it():
    torch.manual_seed(0)
    tuner = lora(rank=16)
    tuner.attach(randomised(timm_net('vit_tiny_patch16_224', **VIT)))
    for delta in tuner.deltas.values():
        bound = 32**-0.5
        assert not delta.B.any()
        assert delta.A.abs().max() <= bound and delta.A.std().item() == pytest.approx(
            bound / 3**0.5, rel=0.15
        )


@pytest.mark.parametrize(
    'given', [dict(rank=2, r=8), dict(alpha=2, lora_alpha=8), dict(dropout=0.1, lora_dropout=0.2)]
)
def test_two_names_of_one_number_must_not_contradict(given):
    with pytest.raises(UserError, match='two names of one argument; give one of them'):
        TUNERS.build(dict(type='LoRA', **given))
    assert TUNERS.build(dict(type='LoRA', rank=8, r=8)).rank == 8
