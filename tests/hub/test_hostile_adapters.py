"""Folders of PEFT and ModelScope that a stranger means ill: refused as a user's error, and nothing of
them is run.
"""

import json
import os
import zipfile

import peft
import pytest
import torch

from tests.hub.adapters import adapter, network
from tests.hub.hostile import BACKTRACKS
from tests.hub.test_modelscope_folders import content, write
from vet.errors import DataError, UserError
from vet.hub import load_modelscope, load_peft


@pytest.fixture
def folder(tmp_path):
    adapter('vit', peft.LoraConfig(r=4, target_modules=['qkv']), tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    'changes',
    [
        dict(target_modules=BACKTRACKS),
        dict(rank_pattern={BACKTRACKS: 4}),
        dict(exclude_modules=BACKTRACKS),
        dict(modules_to_save=[BACKTRACKS]),
        dict(modules_to_save=[7]),
        dict(modules_to_save=['']),
        dict(target_modules='(?=a)'),
        dict(target_modules=[['a']]),
        dict(rank_pattern={'a': 'b'}),
        dict(r=10**9),
        dict(r=10**6),
        dict(r=-4, use_rslora=True),
        dict(lora_alpha=1e300),
        dict(target_modules=['qkv'] * 10**5),
        dict(target_modules='a' * 10**6),
        dict(rank_pattern={f'{i}': 1 for i in range(2000)}),
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_adapters(folder, changes):
    path = folder / 'adapter_config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    try:
        load_peft(folder, network('vit'))
    except UserError as error:
        assert '\n' not in str(error) and len(str(error)) < 3000
    else:
        # of which none fits, and that changes nothing
        assert set(changes) & {'exclude_modules', 'rank_pattern', 'modules_to_save'}


def test_files_of_an_adapter(folder):
    path = folder / 'adapter_config.json'
    path.write_text('[' * 100_000)
    with pytest.raises(DataError, match='nested too deep'):
        load_peft(folder, network('vit'))
    path.unlink()
    path.symlink_to('/etc/passwd')
    with pytest.raises(DataError, match='is a link out of its folder'):
        load_peft(folder, network('vit'))


def _doubled(depth):
    value = ['a']
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    'change',
    [
        lambda file: file['backbone_cfg'].update(depth=10**9),
        lambda file: file['backbone_cfg'].update(lora_length=10**9),
        lambda file: file['backbone_cfg'].update(img_size=10**9),
        lambda file: file['backbone_cfg'].update(embed_dim=_doubled(40)),
        lambda file: file.update(CLASSES=_doubled(40)),
        lambda file: file.update(CLASSES=['a' * 10**6] * 4),
        lambda file: file['head_cfg'].update(dropout_rate='x'),
        lambda file: file['backbone_cfg'].update(mlp_ratio=1e300),
        lambda file: file['backbone_cfg'].update(num_heads=0),
        lambda file: file['backbone_weight'].update({'norm.bias': torch.zeros(1).expand(10**12)}),
        lambda file: file['backbone_weight'].update({'norm.bias': torch.full((32,), torch.nan)}),
        lambda file: file.update({(): 1}),
    ],
    ids=range(12),
)
def test_pickles(change, tmp_path):
    file = content(lora_length=4)
    change(file)
    with pytest.raises(DataError):
        load_modelscope(write(tmp_path / 'model', file))


def test_a_pickle_that_unpacks_to_more_than_it_says(tmp_path):
    path = write(tmp_path / 'model', content()) / 'pytorch_model.pt'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
        file.writestr('archive/data.pkl', b'\x80\x02}.')
        file.writestr('archive/data/0', bytes(10**8))
    with pytest.raises(DataError, match='is compressed, and takes more space than it says'):
        load_modelscope(path.parent)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError):
        load_modelscope(path.parent)
