"""PEFT's names of arguments give the same tuner; both names of one argument are refused."""

import pytest

import vet
from tests.library.networks import vit
from vet.core.peft_names import PEFT_NAMES
from vet.errors import UserError

SAME = [
    (lambda: vet.LoRA(r=4, lora_alpha=8, target_modules=['qkv']), lambda: vet.LoRA(4, 8, at=['*.qkv'])),
    (lambda: vet.LoHa(r=4, alpha=8, target_modules=['fc1']), lambda: vet.LoHa(4, 8, at=['*.fc1'])),
    (lambda: vet.LoKr(r=4, decompose_factor=4), lambda: vet.LoKr(4, factor=4)),
    (lambda: vet.IA3(target_modules=['fc2']), lambda: vet.IA3(at=['*.fc2'])),
    (lambda: vet.AdaLoRA(init_r=4, target_r=2), lambda: vet.AdaLoRA(rank=4, target=2)),
    (lambda: vet.NormTune(target_modules=['norm1']), lambda: vet.NormTune(at=['*.norm1'])),
]


@pytest.mark.parametrize('theirs, ours', SAME)
def test_both_names_make_one_tuner(theirs, ours):
    one, other = (vet.tune(vit(), make()) for make in (theirs, ours))
    assert [(name, p.shape) for name, p in one.trainable().items()] == [
        (name, p.shape) for name, p in other.trainable().items()
    ]


def test_both_names_at_once_are_refused():
    with pytest.raises(UserError, match='rank is 4 and r is 8, two names of one argument'):
        vet.LoHa(rank=4, r=8)
    with pytest.raises(UserError, match='rank is 4 and r is 8'):
        vet.LoRA(rank=4, r=8)


def test_the_names_are_those_of_peft():
    peft = pytest.importorskip('peft')
    configs = dict(
        LoRA=peft.LoraConfig,
        LoHa=peft.LoHaConfig,
        LoKr=peft.LoKrConfig,
        IA3=peft.IA3Config,
        AdaLoRA=peft.AdaLoraConfig,
        NormTune=peft.LNTuningConfig,
        HRA=peft.HRAConfig,
        HiRA=peft.HiraConfig,
        OFT=peft.OFTConfig,
        FourierFT=peft.FourierFTConfig,
        C3A=peft.C3AConfig,
        RandLoRA=peft.RandLoraConfig,
        BOFT=peft.BOFTConfig,
        GLoRA=peft.GloraConfig,
    )
    assert set(configs) == set(PEFT_NAMES)
    for name, config in configs.items():
        assert set(PEFT_NAMES[name]) <= set(config.__dataclass_fields__)
        assert vet.TUNERS.build(dict(type=name, target_modules=['norm1'])).at == ['*.norm1']


def test_modules_to_save_train_whole():
    tuned = vet.tune(vit(), vet.LoRA(2), modules_to_save=['norm1'])
    assert sum('.norm1.weight' in name for name in tuned.trainable()) == 2
    with pytest.raises(UserError, match="module in modules_to_save 'nrm1'. Did you mean"):
        vet.tune(vit(), vet.LoRA(2), modules_to_save=['nrm1'])
