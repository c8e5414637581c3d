"""The numbers that a tuner takes where a user gives none: those of the papers. Another default is
another method for every such user.
"""

import inspect

import pytest

from vet.core.peft_names import PEFT_NAMES
from vet.registry import TUNERS

DEFAULTS = {
    'ARC': dict(width=50, dropout=0.0, drawn_at_mlp=False, at=('attn.qkv', 'mlp.fc1')),
    'AdaLoRA': dict(
        rank=12, target=8, alpha=None, warmup=0.1, final=0.5, gamma=0.1, beta1=0.85, beta2=0.85, at='attn.qkv'
    ),
    'AdaptFormer': dict(width=8, scale=0.1, dropout=0.0, normed=False, at='mlp or block'),
    'Adapter': dict(
        width=8,
        position='after',
        activation='gelu',
        scale=1.0,
        dropout=0.0,
        drop_path=0.0,
        init='zero',
        at='mlp or block',
    ),
    'AdapterPlus': dict(width=8, dropout=0.0, drop_path=0.0, init='houlsby', at='block'),
    'BOFT': dict(block=4, factors=1, at='attn.qkv'),
    'BitFit': dict(at='backbone'),
    'BorderPrompt': dict(pad=5, unit=False),
    'C3A': dict(block=256, at='attn.qkv'),
    'Compacter': dict(width=24, products=4, rank=1, at=('attn', 'mlp or block')),
    'Convpass': dict(
        width=8, scale=1.0, dropout=0.1, drop_path=None, xavier_conv=False, at=('attn', 'mlp or block')
    ),
    'DTL': dict(rank=2, first=None, kernel=0, beta=100.0, at='block'),
    'DiffFit': dict(outputs=('attn.proj', 'mlp.fc2')),
    'DyLoRA': dict(rank=8, alpha=None, schedule='random', smallest=1, use=None, seed=0, at='attn.qkv'),
    'FacT': dict(
        rank=32, variant='tk', scale=1.0, dropout=0.0, at=('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2')
    ),
    'FourierFT': dict(count=3000, scale=300.0, seed=777, at='attn.qkv'),
    'Full': dict(),
    'GLoRA': dict(rank=8, weight='lora', prompt='lora', bias='constant', at='attn.qkv'),
    'GPS': dict(k=1, bias=True, images=1000, at=('stem', 'weight')),
    'HRA': dict(rank=8, at='attn.qkv'),
    'HiRA': dict(rank=32, at='attn.qkv'),
    'Houlsby': dict(
        width=8, activation='gelu', dropout=0.0, drop_path=0.0, init='houlsby', at=('attn', 'mlp or block')
    ),
    'Hydra': dict(width=2, scale=1.0, dropout=0.0, at=('attn.proj', 'mlp.fc2')),
    'IA3': dict(at=('attn.qkv', 'mlp.fc2')),
    'Intermediate': dict(
        width=8, activation='gelu', dropout=0.0, drop_path=0.0, init='bert', at='mlp or block'
    ),
    'LadderSide': dict(reduction=8, heads=4),
    'LinearProbe': dict(),
    'LoHa': dict(rank=4, alpha=None, at='attn.qkv'),
    'LoKr': dict(rank=4, alpha=None, factor=-1, at='attn.qkv'),
    'LoRA': dict(
        rank=10, alpha=None, dropout=0.0, parts=None, at='attn.qkv', variant='plain', seed=0, images=256
    ),
    'MLAE': dict(rank=8, mask=0.5, coefficient=1.0, at='attn.qkv'),
    'Mona': dict(width=64, dropout=0.1, at='block'),
    'MoLoRA': dict(rank=4, experts=4, topk=None, alpha=None, at='attn.qkv'),
    'NormTune': dict(at='norm'),
    'OFT': dict(block=32, terms=None, at='attn.qkv'),
    'PACE': dict(
        rank=10,
        sigma=1.0,
        weight=1.0,
        quiet=1,
        form='mul',
        at=('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2'),
    ),
    'Partial': dict(blocks=1, norm=False, names=None, indices=None),
    'Pfeiffer': dict(width=8, activation='relu', dropout=0.0, drop_path=0.0, init='bert', at='block'),
    'PixelBranch': dict(rank=10, scale=1.0),
    'Prefix': dict(length=10, at='attn'),
    'RandLoRA': dict(rank=32, alpha=640.0, seed=0, at='attn.qkv'),
    'RLRR': dict(at=('stem', 'norm', 'weight')),
    'RepAdapter': dict(width=8, groups=2, scale=1.0, dropout=0.0, at=('attn.qkv', 'mlp.fc1')),
    'ResTuningBypass': dict(width=32, at='block'),
    'SCT': dict(channels=96, mode='attn', scale=1.0, images=1000, at='block'),
    'SNELL': dict(rank=32, sparsity=0.9, at=('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2')),
    'SSF': dict(std=0.02, at=('stem', 'norm', 'weight')),
    'SideTuning': dict(side='fcn4'),
    'UTuning': dict(width=8, scale=1.0, dropout=0.0, at=('attn', 'mlp', 'block')),
    'VPT': dict(length=10, depth='deep', dropout=0.0, at='block'),
}


def test_every_tuner_is_in_the_table():
    found = map(TUNERS.find, TUNERS.names())
    assert set(DEFAULTS) == {tuner.__name__ for tuner in found if tuner.__module__.startswith('vet.')}


@pytest.mark.parametrize('name', DEFAULTS)
def test_defaults(name):
    defaults = {
        key: one.default
        for key, one in inspect.signature(TUNERS.find(name)).parameters.items()
        if one.default is not inspect.Parameter.empty and key not in PEFT_NAMES.get(name, {})
    }
    assert defaults == DEFAULTS[name]


LEARNING_RATES = dict(  # the lowest and the highest rate of AdamW that `vet tune` tries
    AdaptFormer=(5e-4, 2e-2),
    BitFit=(5e-4, 3e-2),
    DTL=(3e-5, 1e-2),
    Full=(1e-5, 1e-3),
    GLoRA=(5e-5, 5e-3),
    LinearProbe=(1e-3, 1e-1),
    LoRA=(3e-4, 2e-2),
    Mona=(3e-5, 3e-3),
    RepAdapter=(5e-4, 2e-2),
    SSF=(1e-3, 3e-2),
    VPT=(1e-3, 1e-1),
)


@pytest.mark.parametrize('name', DEFAULTS)
def test_learning_rates_of_a_search(name):
    assert TUNERS.find(name).learning_rates == LEARNING_RATES.get(name, (2e-4, 2e-2))


OWN = {'LinearProbe', 'Full', 'PixelBranch'}  # without a paper that has code


@pytest.mark.parametrize('name', sorted(set(DEFAULTS) - OWN))
def test_each_method_says_what_is_equal_to_the_released_code(name):
    assert TUNERS.find(name).__doc__.count('Against the released code: ') == 1
