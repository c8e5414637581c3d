"""PEFT's folders against `peft` itself, both ways: what it wrote is read, and it reads what is written."""

import json
import re
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import vet
from tests.hub.adapters import HEAD, NETS, adapter, backbone, difference, network
from tests.nets import images
from tests.own_nets import TRANSFORMERS
from vet.core.backbone import Backbone
from vet.core.model import ImageClassifier
from vet.errors import UserError
from vet.hub import load_peft, save_peft
from vet.hub.peft_methods import TUNED_BY
from vet.registry import HEADS, TUNERS

ATTN_MLP = ['qkv', 'proj', 'fc1', 'fc2']
INTO = {
    'lora': (
        'vit',
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=['qkv', 'fc2'], modules_to_save=['head']),
    ),
    'lora, no head': ('vit', peft.LoraConfig(r=4, lora_alpha=8, target_modules=['qkv'])),
    'lora, regular expression': (
        'vit',
        peft.LoraConfig(r=4, target_modules=r'blocks\.[02]\.attn\.proj', modules_to_save=['head']),
    ),
    'lora, patterns': (
        'vit',
        peft.LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules=ATTN_MLP,
            exclude_modules=['blocks.1.mlp.fc1', 'patch_embed.proj'],
            modules_to_save=['head', 'norm'],
            rank_pattern={'qkv': 2, r'^blocks\.2\.mlp\.fc2': 7},
            alpha_pattern={r'blocks\.0\.attn\.proj': 3, 'fc1': 16},
        ),
    ),
    'rslora': (
        'vit',
        peft.LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=['qkv'], modules_to_save=['head']),
    ),
    'dora': (
        'vit',
        peft.LoraConfig(
            r=4,
            lora_alpha=8,
            use_dora=True,
            lora_dropout=0.1,
            target_modules=['qkv', 'fc1'],
            modules_to_save=['head'],
        ),
    ),
    'rslora and dora': (
        'vit',
        peft.LoraConfig(r=3, lora_alpha=5, use_dora=True, use_rslora=True, target_modules=['qkv']),
    ),
    'lora of the classifier': ('vit', peft.LoraConfig(r=2, target_modules=['qkv', 'head'])),
    'lora, resnet': (
        'resnet',
        peft.LoraConfig(
            r=4, lora_alpha=8, target_modules=['conv1', 'conv2', 'downsample.0'], modules_to_save=['fc']
        ),
    ),
    'dora, resnet': (
        'resnet',
        peft.LoraConfig(
            r=4, lora_alpha=8, use_dora=True, target_modules=['conv1', 'conv2'], modules_to_save=['fc']
        ),
    ),
    'lora and batch norms, resnet': (
        'resnet',
        peft.LoraConfig(r=2, target_modules=['conv2'], modules_to_save=['fc', 'bn1']),
    ),
    'lora, convnext': (
        'convnext',
        peft.LoraConfig(
            r=4, target_modules=['stem.0', 'downsample.1', 'fc1', 'fc2'], modules_to_save=['head']
        ),
    ),
    'ia3': (
        'vit',
        peft.IA3Config(
            target_modules=['qkv', 'attn.proj', 'fc2'], feedforward_modules=['fc2'], modules_to_save=['head']
        ),
    ),
    'ia3, resnet': (
        'resnet',
        peft.IA3Config(
            target_modules=['conv1', 'conv2'], feedforward_modules=['conv2'], modules_to_save=['fc']
        ),
    ),
    'ia3, convnext': (
        'convnext',
        peft.IA3Config(
            target_modules=['conv_dw', 'fc1'], feedforward_modules=['conv_dw'], modules_to_save=['head.fc']
        ),
    ),
    'loha': (
        'vit',
        peft.LoHaConfig(
            r=3, alpha=5, target_modules=['qkv', 'fc2'], rank_pattern={'fc2': 2}, modules_to_save=['head']
        ),
    ),
    'loha, convnext': (
        'convnext',
        peft.LoHaConfig(
            r=3, alpha=5, target_modules=['conv_dw', 'fc1', 'stem.0'], modules_to_save=['head.fc']
        ),
    ),
    'lokr': ('vit', peft.LoKrConfig(r=3, alpha=5, target_modules=['qkv', 'fc2'], modules_to_save=['head'])),
    'lokr, whole': (
        'vit',
        peft.LoKrConfig(
            r=40, alpha=50, decompose_factor=4, alpha_pattern={'fc1': 9}, target_modules=ATTN_MLP[1:]
        ),
    ),
    'lokr, resnet': (
        'resnet',
        peft.LoKrConfig(r=3, alpha=5, target_modules=['conv1', 'layer4.0.conv2'], modules_to_save=['fc']),
    ),
    'lokr, whole, resnet': (
        'resnet',
        peft.LoKrConfig(r=64, alpha=90, target_modules=['conv2'], modules_to_save=['fc']),
    ),
    'hra': ('vit', peft.HRAConfig(r=4, target_modules=['qkv', 'fc2'], modules_to_save=['head'])),
    'hira': ('vit', peft.HiraConfig(r=4, target_modules=['qkv', 'fc2'], modules_to_save=['head'])),
    'oft': ('vit', peft.OFTConfig(oft_block_size=8, target_modules=['qkv', 'fc2'], modules_to_save=['head'])),
    'oft, exact': ('vit', peft.OFTConfig(oft_block_size=8, use_cayley_neumann=False, target_modules=['qkv'])),
    'fourierft': (
        'vit',
        peft.FourierFTConfig(n_frequency=50, target_modules=['qkv', 'fc2'], modules_to_save=['head']),
    ),
    'c3a': ('vit', peft.C3AConfig(block_size=16, target_modules=['qkv', 'fc2'], modules_to_save=['head'])),
    'randlora': ('vit', peft.RandLoraConfig(r=6, target_modules=['qkv', 'fc2'], modules_to_save=['head'])),
    'randlora, drawn again': (
        'vit',
        peft.RandLoraConfig(r=6, target_modules=['qkv'], projection_prng_key=3, save_projection=False),
    ),
    'boft': ('vit', peft.BOFTConfig(boft_block_size=8, target_modules=['qkv', 'fc2'])),
    'glora': ('vit', peft.GloraConfig(r=3, target_modules=['qkv', 'fc2'], modules_to_save=['head'])),
    'glora, vectors': (
        'vit',
        peft.GloraConfig(
            config_A_B='vector', config_C='vector', config_D_E='vector', target_modules=['qkv', 'fc2']
        ),
    ),
    'glora, constants': (
        'vit',
        peft.GloraConfig(config_A_B='constant', config_C='none', target_modules=['qkv', 'fc2']),
    ),
    'ln tuning': (
        'vit',
        peft.LNTuningConfig(target_modules=r'norm|blocks\.\d\.norm[12]', modules_to_save=['head']),
    ),
    'ln tuning, one': ('vit', peft.LNTuningConfig(target_modules='norm')),
    'ln tuning, batch norms': (
        'resnet',
        peft.LNTuningConfig(target_modules=['bn1', 'bn2'], modules_to_save=['fc']),
    ),
}


@pytest.mark.parametrize('case', INTO)
def test_what_peft_wrote_gives_the_same_logits(case, tmp_path, record_property):
    family, config = INTO[case]
    theirs = adapter(family, config, tmp_path)
    given = network(family)
    before = {name: value.clone() for name, value in given.state_dict().items()}
    plain = given(images(3))
    model = load_peft(tmp_path, given)
    assert not model.training
    with torch.no_grad():
        ours = model(images(3))
    record_property('difference', difference(ours, theirs))  # for benchmarks/ecosystem.py
    assert difference(ours, theirs) < 1e-5 and difference(plain, theirs) > 1e-2
    has_head = any(HEAD[family].startswith(name) for name in config.modules_to_save or ())
    assert isinstance(model, ImageClassifier if has_head else Backbone)
    assert not has_head or (
        type(model.head).__name__ == 'LinearHead' and model.classes == ['0', '1', '2', '3', '4']
    )
    after = given.state_dict()  # the module given stays what it is
    assert set(after) == set(before) and all(
        torch.equal(after[name], value) for name, value in before.items()
    )
    assert torch.equal(given(images(3)), plain)
    save_peft(model, tmp_path / 'again')  # and what was read can be written
    assert sorted(path.name for path in (tmp_path / 'again').iterdir()) == [
        'adapter_config.json',
        'adapter_model.safetensors',
    ]
    with torch.no_grad():
        again = peft.PeftModel.from_pretrained(given, tmp_path / 'again').eval()(images(3))
    assert difference(again, theirs) < 1e-5


@pytest.mark.parametrize(
    'family, config',
    [
        ('vit', peft.LoraConfig(r=4, target_modules=['qkv'], modules_to_save=['head'])),
        ('vit', peft.LoraConfig(r=4, target_modules=['qkv'])),
        ('convnext', peft.LoraConfig(r=4, target_modules=['fc1'], modules_to_save=['head'])),
    ],
    ids=['vit', 'vit, no head', 'convnext'],
)
def test_backbone_by_timm_entry_or_as_a_backbone(family, config, tmp_path):
    classes = 5 if config.modules_to_save else 0
    theirs = adapter(family, config, tmp_path / 'adapter', classes)
    save_file(backbone(family).network.state_dict(), tmp_path / 'weights.safetensors')
    name, kwargs, preprocessing = NETS[family]
    entry = dict(
        type='timm',
        name=name,
        kwargs=kwargs,
        checkpoint=str(tmp_path / 'weights.safetensors'),
        preprocessing=preprocessing,
    )
    for given in (entry, backbone(family)):
        model = load_peft(tmp_path / 'adapter', given)
        with torch.no_grad():
            assert difference(model(images(3)), theirs) < 1e-5
        assert isinstance(model, ImageClassifier) == bool(classes)


def test_tuners_of_a_backbone_move_and_train_with_it(tmp_path):
    adapter('vit', peft.LoraConfig(r=4, lora_dropout=0.5, target_modules=['qkv']), tmp_path, 0)
    model = load_peft(tmp_path, network('vit', 0))
    still = model(images(2))
    assert torch.equal(model(images(2)), still)
    assert not torch.allclose(model.train()(images(2)), still)
    assert {parameter.dtype for parameter in model.double().tuners.parameters()} == {torch.float64}


def tuned(family, *tuners, head='Linear'):
    """A classifier whose every trained number is random."""
    torch.manual_seed(4)
    base = backbone(family)
    model = ImageClassifier(
        base,
        [TUNERS.build(tuner) for tuner in tuners],
        HEADS.build(dict(type=head), in_features=base.num_features, num_classes=5),
        list('abcde'),
    )
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


OUT = {
    'lora': ('vit', [dict(type='LoRA', rank=4, alpha=8)]),
    'lora, patterns': (
        'vit',
        [dict(type='LoRA', at='weight', rank={'qkv': 2, 'fc2': 3, '.*': 5}, alpha={'proj': 3, '.*': 4})],
    ),
    'lora, by depth': ('vit', [dict(type='LoRA', rank=[4, 0, 2])]),
    'lora, parts': ('vit', [dict(type='LoRA', rank=4, alpha=6, parts='qv')]),
    'rslora': ('vit', [dict(type='LoRA', rank=4, alpha=8, variant='rslora')]),
    'dora': ('vit', [dict(type='LoRA', rank=4, alpha=8, variant='dora')]),
    'pissa': ('vit', [dict(type='LoRA', rank=4, alpha=8, variant='pissa')]),
    'olora, parts': ('vit', [dict(type='LoRA', rank=4, alpha=2, variant='olora', parts='qv')]),
    'pissa, resnet': ('resnet', [dict(type='LoRA', rank=3, variant='pissa', at='layer*.conv2')]),
    'eva': ('vit', [dict(type='LoRA', rank=4, alpha=8, variant='eva')]),
    'vera': ('vit', [dict(type='LoRA', rank=16, alpha=8, variant='vera', at=['attn.qkv', 'mlp.fc2'])]),
    'vera, parts': ('vit', [dict(type='LoRA', rank=16, variant='vera', parts='qv')]),
    'adalora': ('vit', [dict(type='AdaLoRA', rank=4, target=2, alpha=6)]),
    'two loras apart': ('vit', [dict(type='LoRA', rank=4, alpha=8), dict(type='LoRA', rank=2, at='mlp.fc1')]),
    'lora and a norm': (
        'resnet',
        [dict(type='LoRA', rank=2, at='layer*.conv2'), dict(type='Partial', names=['layer4.0.bn2.'])],
    ),
    'lora, resnet': ('resnet', [dict(type='LoRA', rank=4, alpha=8, at=['stem', 'weight'])]),
    'dora, resnet': ('resnet', [dict(type='LoRA', rank=4, alpha=8, at='weight', variant='dora')]),
    'lora, convnext': ('convnext', [dict(type='LoRA', rank=4, at=['stem', 'mlp.fc1', 'mlp.fc2'])]),
    'ia3': ('vit', [dict(type='IA3')]),
    'ia3, convnext': ('convnext', [dict(type='IA3', at='weight')]),
    'loha': ('vit', [dict(type='LoHa', rank={'qkv': 2, '.*': 4}, alpha=3, at='weight')]),
    'loha, convnext': ('convnext', [dict(type='LoHa', rank=3, at='weight')]),
    'lokr': ('vit', [dict(type='LoKr', rank=3, alpha=2, at='weight')]),
    'lokr, whole': ('vit', [dict(type='LoKr', rank=50, alpha=30, factor=4, at='weight')]),
    'lokr, resnet': ('resnet', [dict(type='LoKr', rank=3, alpha=2, at='weight')]),
    'lokr, whole, convnext': ('convnext', [dict(type='LoKr', rank=50, at='weight')]),
    'ln tuning': ('vit', [dict(type='NormTune')]),
    'ln tuning, batch norms': ('resnet', [dict(type='NormTune')]),
    'ln tuning, last block': ('vit', [dict(type='Partial', blocks=1, norm=True)]),
}


@pytest.mark.parametrize('case', OUT)
def test_peft_reads_what_is_written(case, tmp_path, record_property):
    family, tuners = OUT[case]
    model = tuned(family, *tuners)
    save_peft(model, tmp_path)
    plain = network(family)
    reference = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    with torch.no_grad():
        ours, theirs = model(images(3)), reference(images(3))
    record_property('difference', difference(ours, theirs))  # for benchmarks/ecosystem.py
    assert difference(ours, theirs) < 1e-5 and difference(ours, network(family)(images(3))) > 1e-2
    with torch.no_grad():
        assert difference(load_peft(tmp_path, network(family))(images(3)), ours) < 1e-5


@pytest.mark.parametrize('name', ['vit', 'beit'])
def test_a_tuned_network_of_transformers_goes_to_peft_and_back(name, tmp_path):
    nets = []
    for _ in range(3):
        torch.manual_seed(0)
        nets.append(TRANSFORMERS[name]().eval())
    tuned = vet.tune(nets[0], vet.LoRA(rank=4, alpha=8)).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for parameter in tuned.trainable().values():
            parameter.add_(0.2 * torch.randn_like(parameter))
        ours = tuned(pixel_values=pixels).logits
        save_peft(tuned, tmp_path)
        theirs = peft.PeftModel.from_pretrained(nets[1], tmp_path).eval()(pixel_values=pixels).logits
        back = load_peft(tmp_path, nets[2]).network(pixel_values=pixels).logits
    assert difference(ours, theirs) < 1e-5 and difference(ours, back) < 1e-5


def test_saving_twice_replaces_the_folder(tmp_path):
    for rank in (4, 2):
        save_peft(tuned('vit', dict(type='LoRA', rank=rank)), tmp_path / 'adapter')
    assert json.loads((tmp_path / 'adapter/adapter_config.json').read_text())['r'] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ['adapter']


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / 'thesis.txt').write_text('mine')
    with pytest.raises(UserError, match="holds 'thesis.txt'.*give a new folder"):
        save_peft(tuned('vit', dict(type='LoRA', rank=2)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.txt']


ON_MATRICES = dict(  # PEFT has no such method for convolutions, or computes another update there
    BOFT='BOFT', HRA='HRA', HiRA='HIRA', OFT='OFT', FourierFT='FOURIERFT', C3A='C3A', RandLoRA='RANDLORA'
)


@pytest.mark.parametrize(
    'family, tuners, head, text',
    [
        ('vit', [dict(type='Adapter')], 'Linear', 'Adapter cannot be written for PEFT; allowed: LoRA, LoHa'),
        ('vit', [dict(type='VPT')], 'Linear', 'VPT cannot be written for PEFT'),
        ('vit', [dict(type='Prefix')], 'Linear', 'Prefix cannot be written'),
        ('vit', [dict(type='SideTuning')], 'Linear', 'SideTuning cannot be written'),
        ('vit', [dict(type='SSF')], 'Linear', 'SSF cannot be written'),
        ('vit', [dict(type='LoRA'), dict(type='Adapter')], 'Linear', 'Adapter cannot be written'),
        ('vit', [dict(type='LoRA', variant='dora', parts='qv')], 'Linear', 'DoRA on parts'),
        (
            'vit',
            [dict(type='LoRA'), dict(type='LoRA', at='mlp.fc1', variant='dora')],
            'Linear',
            'some updates are DoRA',
        ),
        (
            'vit',
            [dict(type='LoRA'), dict(type='LoRA')],
            'Linear',
            r"LoRA at 'blocks\.0\.attn\.qkv' is the second there",
        ),
        (
            'vit',
            [dict(type='LoRA'), dict(type='LoHa', at='mlp.fc1')],
            'Linear',
            'the tuners are LOHA and LORA, but',
        ),
        (
            'vit',
            [dict(type='LoKr', factor=4), dict(type='LoKr', at='mlp.fc1')],
            'Linear',
            r'factors \[-1, 4\]',
        ),
        (
            'vit',
            [dict(type='BitFit')],
            'Linear',
            r"'patch_embed\.proj\.bias' was trained without 'patch_embed\.proj\.weight'",
        ),
        ('vit', [dict(type='Full')], 'Linear', r"'(cls_token|pos_embed)' was trained, which is of no module"),
        ('vit', [dict(type='LinearProbe')], 'Linear', 'only a head'),
        ('vit', [dict(type='LoRA')], 'MLP', "the head 'MLP' cannot be written"),
        (
            'convnext',
            [dict(type='LoRA', at='weight')],
            'Linear',
            r"'stages\.0\.blocks\.0\.conv_dw' is Conv2d\(.*groups=8.*PEFT's LORA",
        ),
        *(
            ('resnet', [dict(type=name, at='layer4.0.conv1')], 'Linear', f"conv1' is Conv2d.*PEFT's {method}")
            for name, method in ON_MATRICES.items()
        ),
        (
            'vit',
            [dict(type='HRA', rank=4), dict(type='HRA', rank=2, at='mlp.fc1')],
            'Linear',
            r'ranks \[2, 4\]',
        ),
    ],
    ids=str,
)
def test_what_peft_does_not_have_is_refused_and_nothing_is_written(family, tuners, head, text, tmp_path):
    model = tuned(family, *tuners, head=head)
    with pytest.raises(UserError, match=text):
        save_peft(model, tmp_path / 'adapter')
    assert not list(tmp_path.iterdir())


def test_only_a_model_is_saved(tmp_path):
    with pytest.raises(UserError, match='save_peft takes an ImageClassifier.*given: Linear'):
        save_peft(nn.Linear(2, 2), tmp_path)
    with pytest.raises(UserError, match='given: Backbone'):
        save_peft(backbone('vit'), tmp_path)


def test_a_name_that_peft_would_take_for_two_modules_is_refused(tmp_path):
    model = tuned(
        'resnet', dict(type='LoRA', rank=2, at='layer*.conv2'), dict(type='Partial', names=['bn1.'])
    )
    with pytest.raises(UserError, match=r"\['bn1'\] would name 'layer1\.0\.bn1' to PEFT too"):
        save_peft(model, tmp_path)


def not_converted():
    """The tuners that docs/peft.md says are not converted."""
    page = (Path(__file__).parents[2] / 'docs/peft.md').read_text()
    table = page.partition('<!-- not converted -->')[2].partition('<!-- end -->')[0]
    rows = re.findall(r'^\| ([^|]+) \|', table, re.MULTILINE)[1:]
    return [name for row in rows for name in row.split(', ')]


def test_the_page_tells_of_every_tuner_whether_it_is_converted():
    names = not_converted()
    assert len(names) == len(set(names)) and set(names).isdisjoint(TUNED_BY)
    assert {*names, *TUNED_BY, 'NormTune', 'Partial', 'LinearProbe'} == {*TUNERS.names(), 'PeftIA3'}


@pytest.mark.slow
@pytest.mark.parametrize('name', not_converted())
def test_a_tuner_that_the_page_calls_not_converted_is_refused(name, tmp_path):
    family = 'resnet' if name == 'BorderPrompt' else 'vit'  # the small ViT takes images of one size
    model = tuned(family, dict(type=name, **(dict(channels=8) if name == 'SCT' else {})))
    with pytest.raises(UserError):
        save_peft(model, tmp_path / 'adapter')
    assert not list(tmp_path.iterdir())
