"""PEFT's folders that are broken, foreign or of what vet does not read: refused by file and key, and
nothing is loaded.
"""

import json
import sys

import peft
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.hub.adapters import adapter, network
from tests.nets import VIT
from vet.errors import DataError, UserError
from vet.hub import load_peft, save_peft


@pytest.fixture
def folder(tmp_path):
    adapter('vit', peft.LoraConfig(r=4, target_modules=['qkv'], modules_to_save=['head']), tmp_path)
    return tmp_path


def refused(folder, text, given=None):
    given = given or network('vit')
    before = {name: value.clone() for name, value in given.state_dict().items()}
    with pytest.raises(UserError, match='(?s)' + text) as caught:
        load_peft(folder, given)
    assert '\n' not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    return caught.value


@pytest.mark.parametrize(
    'changes, text',
    [
        (
            dict(peft_type='PROMPT_TUNING'),
            r"unknown peft_type in '.*adapter_config\.json' 'PROMPT_TUNING'.*Allowed: BOFT, C3A, .*LN_TUNING",
        ),
        (dict(peft_type='VERA'), r"unknown peft_type .* 'VERA'"),
        (dict(peft_type=None), 'unknown peft_type'),
        (dict(peft_type=['LORA']), 'unknown peft_type'),
        (
            dict(use_qalora=True),
            r'adapter_config\.json. has use_qalora = True, a setting that vet does not read for LORA',
        ),
        (dict(layers_to_transform=[0]), r'has layers_to_transform = \[0\]'),
        (dict(layers_to_transform=0), 'has layers_to_transform = 0'),
        (dict(invented=3), 'has invented = 3'),
        (dict(lora_bias=True), 'has lora_bias = True'),
        (dict(decompose_factor=2), 'has decompose_factor = 2, .* for LORA'),
        (dict(bias='all'), "has bias = 'all'; of those, vet reads 'none'"),
        (dict(init_lora_weights='pissa'), "has init_lora_weights = 'pissa'"),
        (dict(r='4'), "has r = '4', of the wrong kind"),
        (dict(r=True), 'has r = True, of the wrong kind'),
        (dict(target_modules=3), 'has target_modules = 3, of the wrong kind'),
        (dict(target_modules='('), r"has a target_modules that is '\(', not a regular expression"),
        (
            dict(target_modules=['nothing']),
            r"has target_modules = \['nothing'\], which is no module of this network",
        ),
        (dict(target_modules=['blocks.0']), r"'blocks\.0' among its target_modules, which is a Block"),
        (
            dict(r=5),
            r"adapter_model\.safetensors.*'base_model\.model\.blocks\.0\.attn\.qkv\.lora_A\.weight' \(given \(4, 32\), needed \(5, 32\)\)",
        ),
        (dict(r=0), r'adapter_config\.json. cannot be put on .*rank is 0'),
        (
            dict(use_dora=True),
            r"'base_model\.model\.blocks\.0\.attn\.qkv\.lora_magnitude_vector' \(given nothing",
        ),
        (
            dict(target_modules=['qkv', 'fc1']),
            r"'base_model\.model\.blocks\.0\.mlp\.fc1\.lora_A\.weight' \(given nothing",
        ),
        (
            dict(target_modules=['blocks.0.attn.qkv']),
            r"'base_model\.model\.blocks\.1\.attn\.qkv\.lora_A\.weight' .*needed nothing",
        ),
    ],
    ids=str,
)
def test_a_configuration_that_is_not_read_is_refused_by_its_key(folder, changes, text):
    path = folder / 'adapter_config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(folder, text)


@pytest.mark.parametrize(
    'text, message', [('{', 'not valid JSON'), ('[]', 'peft_type is needed'), ('{}', 'peft_type is needed')]
)
def test_broken_configuration(folder, text, message):
    (folder / 'adapter_config.json').write_text(text)
    assert isinstance(refused(folder, 'adapter_config.json.*' + message), DataError)


def test_missing_files(folder, tmp_path):
    (folder / 'adapter_model.safetensors').rename(folder / 'adapter_model.bin')
    refused(folder, 'adapter_model.safetensors.* cannot be read.*bin files are pickles')
    (folder / 'adapter_config.json').unlink()
    refused(folder, 'is no model folder: adapter_config.json cannot be read')


def test_a_file_cut_short(folder):
    path = folder / 'adapter_model.safetensors'
    data = path.read_bytes()
    for kept in (0, 5, 200, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:kept])
        assert isinstance(refused(folder, 'adapter_model.safetensors.* cannot be read'), DataError)


def test_keys_missing_left_over_and_misshaped(folder):
    path = folder / 'adapter_model.safetensors'
    tensors, name = load_file(path), 'base_model.model.blocks.1.attn.qkv.lora_B.weight'
    head = 'base_model.model.head.bias'
    for wrong, text in (
        ({k: v for k, v in tensors.items() if k != name}, f"'{name}' .given nothing, needed .96, 4."),
        ({k: v for k, v in tensors.items() if k != head}, f"'{head}' .given nothing, needed .5,."),
        (
            tensors | {'base_model.model.blocks.9.attn.qkv.lora_A.weight': torch.zeros(4, 32)},
            r"'base_model.model.blocks.9.*needed nothing",
        ),
        (tensors | {'../../escape': torch.zeros(1)}, r"'\.\./\.\./escape'.*needed nothing"),
        (tensors | {name: torch.zeros(96, 3)}, f"'{name}' .given .96, 3., needed .96, 4."),
        (tensors | {head: torch.zeros(4)}, f"'{head}' .given .4,., needed .5,."),
    ):
        save_file(wrong, path)
        assert isinstance(
            refused(
                folder, 'adapter_model.safetensors.* does not fit this model at 1 tensors, such as ' + text
            ),
            DataError,
        )


def test_another_network_is_refused(folder):
    refused(folder, "target_modules = .*'qkv'.* is no module of this network", network('resnet'))
    other = timm.create_model('vit_tiny_patch16_224', num_classes=5, **VIT | dict(embed_dim=48))
    refused(folder, r'lora_A.weight. .given .4, 32., needed .4, 48.', other)


def test_what_is_no_backbone_is_refused(folder):
    with pytest.raises(UserError, match='backbone is 3; allowed: a timm name'):
        load_peft(folder, 3)
    with pytest.raises(UserError, match="unknown timm model 'vit_tinny_patch16_224'"):
        load_peft(folder, 'vit_tinny_patch16_224')


def test_peft_itself_is_not_needed(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'peft', None)
    save_peft(load_peft(folder, network('vit')), folder / 'again')
    first, second = (load_file(path / 'adapter_model.safetensors') for path in (folder, folder / 'again'))
    assert set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)
