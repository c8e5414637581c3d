"""Saved models of tiny real networks, each of whose trained numbers is random."""

import pytest
import torch

from tests.nets import VIT
from vet.core.assemble import build_classifier
from vet.hub.model_folder import save_model
from vet.registry import BACKBONES

BACKBONE = dict(type='timm', name='vit_tiny_patch16_224', pretrained=False, kwargs=VIT)


@pytest.fixture
def folder(tmp_path):
    """folder(entry, …, seed=…): a saved model with these tuners, every trained number of it moved at
    random.
    """

    def make(*tuners, seed=0, classes='abc', name=BACKBONE['name'], **preprocessing):
        backbone = BACKBONES.build(BACKBONE | dict(name=name))
        backbone.preprocessing = backbone.preprocessing.with_changes(preprocessing)
        model = build_classifier(backbone, list(tuners), dict(type='Linear'), list(classes))
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.trainable().values():
                parameter.add_(0.1 * torch.randn_like(parameter))
        settings = dict(
            model=dict(tuners=list(tuners), head=dict(type='Linear'), tasks={}),
            dataset={},
            train={},
            evaluation={},
            seed=seed,
        )
        path = tmp_path / f'model{len(list(tmp_path.iterdir()))}'
        save_model(model, path, dict(settings=settings, metrics=dict(accuracy=0.5)))
        return path

    return make
