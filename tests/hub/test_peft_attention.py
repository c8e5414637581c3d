"""PEFT's LoRA of nn.MultiheadAttention against `peft` itself, both ways, on OpenCLIP and torchvision.

PEFT 0.21 adds the update of out_proj twice. The tests with updates of out_proj fail if a later PEFT does not.
"""

import copy
import json
import re
import warnings

import peft
import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

import vet
from tests.hub.adapters import difference
from tests.own_nets import open_clip
from vet.errors import DataError, UserError
from vet.hub import load_peft, save_peft


def torchvision_vit():
    torch.manual_seed(0)
    network = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5
    )
    nn.init.normal_(network.heads.head.weight)
    return network.eval()


def vision_of_clip():
    torch.manual_seed(0)
    return open_clip().visual.eval()


NETS = dict(torchvision=(torchvision_vit, 'self_attention'), open_clip=(vision_of_clip, 'attn'))
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
BOTH = ['attn.qkv', 'attn.proj']
OUT = {
    'default': (lambda: [vet.LoRA(4, alpha=6)], False),
    'parts': (lambda: [vet.LoRA(4, alpha=6, parts='qv')], False),
    'pissa': (lambda: [vet.LoRA(4, variant='pissa')], False),
    'vera': (lambda: [vet.LoRA(8, alpha=40, variant='vera')], False),
    'adalora': (lambda: [vet.AdaLoRA(rank=4, target=2)], False),
    'beside an FFN': (lambda: [vet.LoRA(4, at=['attn.qkv', 'mlp.fc1'])], False),
    'both': (lambda: [vet.LoRA(4, alpha=8, at=BOTH)], True),
    'all weights': (lambda: [vet.LoRA(3, alpha=2, at='weight')], True),
    'out_proj alone': (lambda: [vet.LoRA(3, at='attn.proj')], True),
    'other ranks and scales': (
        lambda: [vet.LoRA(2, alpha=6, variant='rslora'), vet.LoRA(5, at='attn.proj')],
        True,
    ),
    'parts beside out_proj': (lambda: [vet.LoRA(4, parts='qv'), vet.LoRA(2, at='attn.proj')], True),
}


def scattered(parameters):
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.2 * torch.randn_like(parameter))


def tuned(network, *tuners):
    made = vet.tune(network, *tuners).eval()
    torch.manual_seed(2)
    scattered(made.trainable().values())
    return made


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings(
            'ignore', message='vet knows no classifier|the adapter has updates of out_proj'
        )
        yield


@pytest.mark.parametrize('case', OUT)
@pytest.mark.parametrize('name', NETS)
def test_peft_computes_what_vet_wrote_and_vet_reads_it(name, case, tmp_path, quiet):
    build, _ = NETS[name]
    make_tuners, has_out_proj = OUT[case]
    ours = tuned(build(), *make_tuners())
    with torch.no_grad():
        save_peft(ours, tmp_path)
        wanted, theirs = ours(IMAGES), peft.PeftModel.from_pretrained(build(), tmp_path).eval()(IMAGES)
        back = load_peft(tmp_path, build())(IMAGES)
        assert difference(build()(IMAGES), wanted) > 1e-2
    assert difference(theirs, wanted) < 1e-5 and difference(back, wanted) < 1e-5
    config = json.loads((tmp_path / 'adapter_config.json').read_text())
    assert ('peft_version' in config) == has_out_proj


@pytest.mark.parametrize('settings', [dict(), dict(use_rslora=True), dict(lora_dropout=0.5)], ids=str)
@pytest.mark.parametrize('name', NETS)
def test_what_peft_wrote_is_read_and_written_again(name, settings, tmp_path, quiet):
    build, attention = NETS[name]
    torch.manual_seed(3)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=[attention], rank_pattern={f'.*1.{attention}': 2}, **settings
    )
    model = peft.get_peft_model(build(), config).eval()
    scattered(parameter for parameter in model.parameters() if parameter.requires_grad)
    with torch.no_grad():
        theirs = model(IMAGES)
        model.save_pretrained(tmp_path)
        read = load_peft(tmp_path, build())
        save_peft(read, tmp_path / 'again')
        again = peft.PeftModel.from_pretrained(build(), tmp_path / 'again').eval()(IMAGES)
        assert difference(build()(IMAGES), theirs) > 1e-2
        assert difference(read(IMAGES), theirs) < 1e-5 and difference(again, theirs) < 1e-5


def test_all_linear_of_peft_never_computes_out_proj_and_is_read_so(tmp_path):
    torch.manual_seed(3)
    model = peft.get_peft_model(torchvision_vit(), peft.LoraConfig(r=4, target_modules='all-linear')).eval()
    scattered(parameter for parameter in model.parameters() if parameter.requires_grad)
    with torch.no_grad():
        theirs = model(IMAGES)
        model.save_pretrained(tmp_path)
        assert difference(load_peft(tmp_path, torchvision_vit())(IMAGES), theirs) < 1e-5


def test_zeros_that_fill_a_rank_stay_zero_in_a_training_of_peft(tmp_path, quiet):
    save_peft(tuned(torchvision_vit(), vet.LoRA(4)), tmp_path)
    model = peft.PeftModel.from_pretrained(torchvision_vit(), tmp_path, is_trainable=True).train()
    model(IMAGES).square().sum().backward()
    gradients = {
        name: p.grad.abs().sum().item() for name, p in model.named_parameters() if p.grad is not None
    }
    filled = {name for name in gradients if '.out_proj.' in name}
    assert len(filled) == 4 and not any(gradients[name] for name in filled)
    assert any(gradients[name] for name in set(gradients) - filled)


def test_the_warning_names_the_version_of_peft(tmp_path):
    ours = tuned(torchvision_vit(), vet.LoRA(4, at='attn.proj'))
    with pytest.warns(UserWarning, match=r'PEFT to 0\.21\.2 adds these twice, so the adapter holds half'):
        save_peft(ours, tmp_path)


class Attention(nn.Module):
    """One nn.MultiheadAttention, in an nn.TransformerEncoderLayer if `layer` is given."""

    def __init__(self, kdim=None, layer=None):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 5)
        self.attn = layer or nn.MultiheadAttention(16, 2, kdim=kdim, vdim=kdim, batch_first=True)

    def forward(self, images):
        x = self.stem(images).flatten(2).mT
        is_layer = isinstance(self.attn, nn.TransformerEncoderLayer)
        return self.head((self.attn(x) if is_layer else self.attn(x, x, x)[0]).mean(1))


REFUSED = {
    'dora': (Attention, lambda: [vet.LoRA(2, variant='dora', at='attn.qkv')], "'dora', but PEFT has no DoRA"),
    'two': (
        Attention,
        lambda: [vet.LoRA(2, at='attn.qkv'), vet.LoRA(3, at='attn.qkv')],
        "'attn' has two updates of 'in_proj_weight'.* one LoRA of the sum of the ranks",
    ),
    'another method': (
        Attention,
        lambda: [vet.LoHa(2, at='attn.qkv')],
        "LoHa at 'attn' is in a MultiheadAttention.* Tune other places with at=…, or keep vet's own model",
    ),
    'separate': (
        lambda: Attention(kdim=16).requires_grad_(False),
        lambda: [vet.LoRA(2, at='*.out_proj')],
        'separate weights of queries, keys and values',
    ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_peft_does_not_have_of_an_attention_is_refused(case, tmp_path, quiet):
    build, make_tuners, text = REFUSED[case]
    if case == 'separate':
        network = Attention()
        network.attn._qkv_same_embed_dim = False
        packed = network.attn.in_proj_weight.detach()
        network.attn.in_proj_weight = None
        for name, part in zip('qkv', packed.chunk(3)):
            setattr(network.attn, f'{name}_proj_weight', nn.Parameter(part.clone()))
    else:
        network = build()
    ours = vet.tune(network, *make_tuners(), example=IMAGES)
    with pytest.raises(UserError, match=text):
        save_peft(ours, tmp_path / 'adapter')
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_a_later_peft_is_refused(tmp_path, quiet):
    save_peft(tuned(torchvision_vit(), vet.LoRA(4, at='attn.proj')), tmp_path)
    path = tmp_path / 'adapter_config.json'
    path.write_text(re.sub(r'"peft_version": "[\d.]+"', '"peft_version": "0.22.0.dev0"', path.read_text()))
    with pytest.raises(
        DataError, match=r'written by PEFT 0\.22\.0\.dev0\. vet knows this LoRA of PEFT to 0\.21\.2'
    ):
        load_peft(tmp_path, torchvision_vit())


def test_a_layer_of_the_fast_path_is_warned_of(tmp_path, quiet):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    network = Attention(layer=layer).eval()
    plain = copy.deepcopy(network)
    ours = vet.tune(network, vet.LoRA(2, at='*.linear1'), example=IMAGES).eval()
    scattered(ours.trainable().values())
    with pytest.warns(UserWarning, match=r"'attn\.linear1' is in an nn\.TransformerEncoderLayer.*fastpath"):
        save_peft(ours, tmp_path)
    with torch.no_grad():
        wanted = ours(IMAGES)
        model = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
        assert difference(model(IMAGES), wanted) > 1e-3
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            assert difference(model(IMAGES), wanted) < 1e-5
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
