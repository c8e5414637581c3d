"""A folder of vet.tune is a model folder: a pipeline without a task name, a push, and PEFT's adapter."""

import pytest
import timm
import torch
from PIL import Image
from timm.models import VisionTransformer
from torch import nn

import vet
from tests.library.networks import VIT
from vet.errors import DataError, UserError
from vet.hub import push_to_hub, save_peft

IMAGE = Image.new('RGB', (200, 180), (200, 30, 20))
INPUT = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model('test_vit', num_classes=5).eval()


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A tuned network, its folder and a file of its weights."""
    path, net = tmp_path_factory.mktemp('library'), network()
    torch.save(net.state_dict(), path / 'weights.pth')
    tuned = vet.tune(net, vet.LoRA(rank=2))
    with torch.no_grad():
        for parameter in tuned.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 10)
    tuned.save(path / 'flowers', classes=list('abcde'))
    return tuned, path / 'flowers', path / 'weights.pth'


@pytest.mark.parametrize('source', ['file', 'network'])
def test_a_pipeline_needs_no_task_name(saved, source):
    tuned, folder, weights = saved
    given = dict(backbone=weights) if source == 'file' else dict(network=network())
    classify = vet.pipeline(folder, device='cpu', **given)
    assert classify.classes == list('abcde') and set(classify(IMAGE)['labels']) == set('abcde')
    assert torch.equal(classify.model(INPUT), tuned(INPUT))
    assert classify(IMAGE) == vet.pipeline('vision-efficient-tuning', str(folder), backbone=weights)(IMAGE)


def test_images_are_prepared_as_the_library_says(saved):
    _, folder, weights = saved
    settings = vet.pipeline(folder, backbone=weights).model.backbone.preprocessing
    wanted = timm.data.resolve_model_data_config(network())
    assert (settings.size, settings.mean, settings.crop_pct) == (
        (160, 160),
        wanted['mean'],
        wanted['crop_pct'],
    )


def test_other_weights_are_refused(saved, tmp_path):
    state = network().state_dict()
    state['blocks.0.attn.qkv.weight'][0, 0] += 1e-3
    torch.save(state, tmp_path / 'other.pth')
    with pytest.raises(DataError, match='not the backbone weights that were tuned'):
        vet.pipeline(saved[1], backbone=tmp_path / 'other.pth')


def test_a_network_that_vet_cannot_build_must_be_given(tmp_path):
    net = timm.create_model('vit_tiny_patch16_224', **VIT, num_classes=3).eval()
    tuned = vet.tune(net, vet.LoRA(rank=2))
    tuned.save(tmp_path / 'folder')
    with pytest.raises(
        DataError, match=r'class VisionTransformer, which vet cannot build.*network=network\)\.$'
    ):
        vet.pipeline(tmp_path / 'folder')
    tuned.detach()
    assert vet.pipeline(tmp_path / 'folder', network=net)(IMAGE)['labels'] != []
    with pytest.raises(UserError, match='detached, so there is nothing to save'):
        tuned.save(tmp_path / 'again')


def test_a_folder_is_pushed(saved, tmp_path):
    tuned, folder, weights = saved
    push_to_hub(folder, tmp_path / 'pushed')
    assert 'LoRA and Partial on VisionTransformer' in (tmp_path / 'pushed/README.md').read_text()
    assert torch.equal(vet.pipeline(tmp_path / 'pushed', backbone=weights).model(INPUT), tuned(INPUT))


def test_the_card_of_a_network_that_vet_cannot_build_shows_vet_load(saved, tmp_path):
    net = timm.create_model('vit_tiny_patch16_224', **VIT, num_classes=3).eval()
    vet.tune(net, vet.LoRA(rank=2)).save(tmp_path / 'folder')
    push_to_hub(tmp_path / 'folder', tmp_path / 'pushed')
    card = (tmp_path / 'pushed/README.md').read_text()
    assert f'vet.load({str(tmp_path / "pushed")!r}, network)' in card and 'network=network' in card
    assert 'is the VisionTransformer that was tuned' in card and 'backbone=PATH' not in card
    push_to_hub(saved[1], tmp_path / 'timm')  # vet builds this network again
    assert 'backbone=PATH' in (tmp_path / 'timm/README.md').read_text()


def test_peft_reads_the_adapter(saved, tmp_path):
    peft = pytest.importorskip('peft')
    tuned, folder, weights = saved
    save_peft(tuned, tmp_path / 'one')
    save_peft(vet.pipeline(folder, backbone=weights).model, tmp_path / 'two')
    for adapter in (tmp_path / 'one', tmp_path / 'two'):
        theirs = peft.PeftModel.from_pretrained(network(), adapter).eval()
        torch.testing.assert_close(theirs(INPUT), tuned(INPUT))


class Counting(VisionTransformer):
    """A network that has a scale only without its classifier, as a user's own entry of timm may have."""

    def __init__(self, num_classes=5, **options):
        super().__init__(16, 8, embed_dim=16, depth=1, num_heads=2, num_classes=num_classes)
        if not num_classes:
            self.scale = nn.Parameter(torch.ones(16))


@pytest.mark.parametrize(
    'lost, text',
    [
        ((), "holds 'scale', which 'vet_test_counting' has only without a classifier"),
        (('norm.weight',), 'norm.weight'),
    ],
    ids=['a weight without a place', 'a weight that is missing'],
)
def test_no_weight_of_a_file_is_lost_in_silence(lost, text, tmp_path, monkeypatch):
    monkeypatch.setitem(timm.models._registry._model_entrypoints, 'vet_test_counting', Counting)
    state = Counting(num_classes=0).state_dict()
    torch.save({name: value for name, value in state.items() if name not in lost}, tmp_path / 'weights.pth')
    whole = ['head.weight', 'head.bias']
    entry = dict(type='network', name='Counting', model='vet_test_counting', whole=whole)
    with pytest.raises(DataError, match=text):
        vet.BACKBONES.build(entry | dict(checkpoint=tmp_path / 'weights.pth'))
