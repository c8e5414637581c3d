"""Model folders and runs of before: an entry whose meaning has changed keeps its old meaning."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.nets import VIT, images
from vet.core.assemble import build_classifier
from vet.core.meanings import OLDER, of_today
from vet.engine.saving.checkpoint import FORMAT as CHECKPOINT
from vet.engine.saving.same_run import refuse_older_entries
from vet.errors import TrainingError
from vet.hub.model_folder import FORMAT, load_model, read_configuration, save_model
from vet.registry import BACKBONES, TUNERS

BACKBONE = dict(type='timm', name='vit_tiny_patch16_224', pretrained=False, kwargs=VIT)


@pytest.fixture
def older(tmp_path):
    """older(entry then, entry today): the folder of an older vet, and the model whose numbers it holds."""

    def make(then, today):
        torch.manual_seed(0)
        head = dict(type='Linear')
        model = build_classifier(BACKBONES.build(BACKBONE), [today], head, ['a', 'b']).eval()
        with torch.no_grad():
            for parameter in model.trainable().values():
                parameter.add_(0.2 * torch.randn_like(parameter))
        settings = dict(model=dict(tuners=[then], head=head, tasks={}, shared='.*'))
        settings |= dict(dataset={}, train={}, evaluation={}, seed=0)
        folder = tmp_path / 'model'
        save_model(model, folder, dict(settings=settings, metrics={}))
        path = folder / 'configuration.json'
        configuration = json.loads(path.read_text())
        assert configuration['format'] == FORMAT == 3
        path.write_text(json.dumps(configuration | dict(format=2)))
        return folder, model

    return make


@pytest.mark.parametrize(
    'then, today',
    [
        (dict(type='AdaptFormer', width=3), dict(type='AdaptFormer', width=3, normed=True)),
        (dict(type='Pfeiffer', width=3), dict(type='Intermediate', width=3)),
        (dict(type='SCT', channels=4), dict(type='SCT', channels=4, mode='output')),
        (dict(type='SCT', channels=4, at='attn'), dict(type='SCT', channels=4, at='attn', mode='output')),
    ],
    ids=lambda entry: str(entry),
)
def test_a_folder_of_before_gives_the_answers_of_before(older, then, today):
    folder, model = older(then, today)
    assert read_configuration(folder)['model']['tuners'] == [today]
    with torch.no_grad():
        assert torch.equal(load_model(folder)(images(3)), model(images(3)))


def test_the_old_adaptformer_read_the_normed_tensor(older):
    """The old equation, written out: FFN(LN x) + 0.1 u(LN x)."""
    folder, _ = older(dict(type='AdaptFormer', width=3), dict(type='AdaptFormer', width=3, normed=True))
    model = load_model(folder)
    net, deltas = model.backbone.network, model.tuners[0].deltas
    with torch.no_grad():
        x = images(2)
        h = torch.cat([net.cls_token.expand(2, -1, -1), net.patch_embed(x)], 1) + net.pos_embed
        for i, block in enumerate(net.blocks):
            h = h + block.attn(block.norm1(h))
            n, delta = block.norm2(h), deltas[f'blocks/{i}/mlp']
            u = F.relu(n @ delta.down.weight.T + delta.down.bias) @ delta.up.weight.T + delta.up.bias
            h = h + type(block.mlp).forward(block.mlp, n) + 0.1 * u
        assert torch.allclose(model(x), model.head(net.norm(h)[:, 0]), atol=1e-5)


@pytest.mark.parametrize('name', OLDER)
def test_each_older_entry_builds_and_means_something_else_today(name):
    today = of_today(dict(type=name))
    assert TUNERS.build(today).entry() != TUNERS.build(dict(type=name)).entry()
    assert of_today(of_today(dict(type=name))) == today


def test_a_run_of_before_does_not_continue_as_another_method(tmp_path):
    checkpoint = tmp_path / 'step-00000004'
    checkpoint.mkdir()
    config = dict(model=dict(tuners=[dict(type='LoRA'), dict(type='Pfeiffer', width=2)]))
    for form, refused in ((1, True), (CHECKPOINT, False)):
        Path(checkpoint, 'progress.json').write_text(json.dumps(dict(format=form)))
        if not refused:
            refuse_older_entries(checkpoint, config)
            continue
        with pytest.raises(
            TrainingError, match="Pfeiffer was the method that is now .*'Intermediate'.*Begin anew"
        ):
            refuse_older_entries(checkpoint, config)
    Path(checkpoint, 'progress.json').write_text(json.dumps(dict(format=1)))
    refuse_older_entries(checkpoint, dict(model=dict(tuners=[dict(type='LoRA')])))
