"""The configs with the published values of methods: each reads whole, and its tuners act on such a network."""

from pathlib import Path

import pytest
import timm

from tests.nets import images, timm_net, tiny
from vet.config import load_config, read_settings
from vet.core.model import ImageClassifier
from vet.datasets.base import Dataset
from vet.registry import DATASETS, HEADS, TUNERS

CONFIGS = Path(__file__).parents[2] / 'configs'
PUBLISHED = sorted(
    [
        *CONFIGS.glob('*_vtab_cifar.py'),
        *CONFIGS.glob('vitb16_clip_*_flowers.py'),
        CONFIGS / 'swin_large_mona_flowers.py',
    ]
)


@pytest.mark.parametrize('path', PUBLISHED, ids=lambda path: path.stem)
def test_a_published_recipe_reads_whole_and_acts(path):
    settings = read_settings(load_config(path))
    name = settings.model.backbone['name']
    assert timm.models.is_model_pretrained(name) and issubclass(
        DATASETS.find(settings.dataset.train['type']), Dataset
    )
    backbone = (
        tiny('swin')
        if name.startswith('swin')
        else timm_net('vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=192, depth=3, num_heads=3)
    )
    tuners = [TUNERS.build(entry) for entry in settings.model.tuners]
    head = HEADS.build(dict(type='Linear'), in_features=backbone.num_features, num_classes=3)
    model = ImageClassifier(backbone, tuners, head, list('abc')).eval()
    assert model(images(2)).shape == (2, 3)
    assert settings.evaluation.select == 'last'  # never the best epoch on test images
    assert 'arXiv:' in path.read_text() and 'Not measured' in ' '.join(path.read_text().split())
