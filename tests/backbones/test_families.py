"""CLIP, DINOv2, SigLIP and Google's ViT: the network and the preprocessing that are published, and
tuners in every block.
"""

from dataclasses import dataclass, field

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from tests.backbones.equations import SMALL, build
from tests.nets import images, randomised
from vet import pipeline
from vet.core.assemble import build_classifier
from vet.core.backbone import Backbone
from vet.hub.model_folder import load_model, save_model
from vet.registry import BACKBONES, TUNERS
from vet.transforms.torchvision import build_transform

OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5,) * 3, (0.5,) * 3


@dataclass(frozen=True)
class Family:
    """What is published of a network. Sizes are the full network's; pre, scales: whether it has a norm
    before and layer scales.
    """

    name: str
    normalised: tuple
    crop_pct: float
    size: int = 224
    patch: int = 16
    prefix: int = 1
    eps: float = 1e-6
    activation: str = 'GELU'
    pool: str = 'token'
    width: int = 768
    depth: int = 12
    pre: bool = False
    scales: bool = False
    kwargs: dict = field(default_factory=dict)

    def __str__(self):
        return self.name + ''.join(f'-{key}={value}' for key, value in self.kwargs.items())

    @property
    def grid(self) -> int:
        return self.size // self.patch

    def count(self) -> int:
        """The parameters of the network without a classifier."""
        c, n = self.width, self.grid**2
        registers = max(self.prefix - 1, 0)  # have no positions, nor has the class token beside them
        positions = n + (self.prefix == 1)
        pool = 12 * c * c + 12 * c if self.pool == 'map' else 0  # latent, q, kv, proj, norm, mlp
        return (
            3 * self.patch**2 * c
            + c * (not self.pre)
            + c * (min(self.prefix, 1) + registers + positions)
            + self.depth * (12 * c * c + 13 * c + 2 * c * self.scales)
            + 2 * c
            + 2 * c * self.pre
            + pool
        )


CLIP = dict(normalised=OPENAI, eps=1e-5, activation='QuickGELU', pre=True)
DINO = dict(normalised=IMAGENET, crop_pct=1.0, size=518, patch=14, width=384, scales=True)
FAMILIES = (
    Family(
        'vit_large_patch14_clip_quickgelu_224.openai', crop_pct=1.0, patch=14, width=1024, depth=24, **CLIP
    ),
    Family('vit_base_patch16_clip_quickgelu_224.openai', crop_pct=0.9, **CLIP),
    Family('vit_base_patch16_clip_224.laion2b', crop_pct=1.0, **(CLIP | dict(activation='GELU'))),
    Family('vit_small_patch14_dinov2.lvd142m', **DINO),
    Family('vit_small_patch14_reg4_dinov2.lvd142m', prefix=5, **DINO),
    Family(
        'vit_small_patch14_reg4_dinov2.lvd142m',
        prefix=5,
        kwargs=dict(img_size=224),
        **(DINO | dict(size=224)),
    ),
    Family('vit_base_patch16_siglip_224.webli', HALF, 0.9, prefix=0, pool='map'),
    Family('vit_base_patch16_siglip_256.v2_webli', HALF, 0.9, size=256, prefix=0, pool='map'),
    Family('vit_base_patch16_224.orig_in21k', HALF, 0.9),
    Family('vit_base_patch16_224.augreg_in21k', HALF, 0.9),
)
every_family = pytest.mark.parametrize('family', FAMILIES, ids=str)


# What is published -------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_size(monkeypatch):
    """full_size(family): the network at its published size, on torch's meta device."""
    monkeypatch.setattr('vet.core.backbone.weights_sha256', lambda state: '')

    def make(family: Family) -> Backbone:
        return BACKBONES.build(dict(type='timm', name=family.name, pretrained=False, kwargs=family.kwargs))

    with torch.device('meta'):
        yield make


@every_family
def test_the_network_is_the_published_one(full_size, family):
    backbone = full_size(family)
    network, settings, site = backbone.network, backbone.preprocessing, backbone.sites.find('block')[0]
    assert (settings.size, settings.mean, settings.std) == ((family.size, family.size), *family.normalised)
    assert (settings.crop_pct, settings.interpolation) == (family.crop_pct, 'bicubic')
    assert (site.grid, site.num_prefix_tokens, site.num_blocks) == (
        (family.grid, family.grid),
        family.prefix,
        family.depth,
    )
    assert (
        tuple(site.in_shape) == (family.grid**2 + family.prefix, family.width)
        and backbone.num_features == family.width
    )
    assert {module.eps for module in network.modules() if isinstance(module, torch.nn.LayerNorm)} == {
        family.eps
    }
    assert {type(block.mlp.act).__name__ for block in network.blocks} == {family.activation}
    assert (network.global_pool, isinstance(network.norm_pre, torch.nn.LayerNorm)) == (
        family.pool,
        family.pre,
    )
    assert sum(p.numel() for p in network.parameters()) == family.count() and backbone.warnings() == []


def test_the_count_of_clips_large_image_encoder_is_the_published_one():
    assert FAMILIES[0].count() + 1024 * 768 == 303_966_208  # OpenAI's, with the projection to 768


@every_family
def test_tuners_sit_in_the_blocks_and_count_their_closed_formulas(full_size, family):
    backbone = full_size(family)
    for entry, number in (
        (dict(type='LoRA', rank=10), family.depth * 10 * (family.width + 3 * family.width)),
        (dict(type='VPT', length=10), family.depth * 10 * family.width),
    ):
        tuner = TUNERS.build(entry)
        tuner.attach(backbone)
        assert sum(p.numel() for _, p in tuner.trainable()) == number
        if entry['type'] == 'LoRA':
            assert list(tuner.deltas) == [f'blocks/{i}/attn/qkv' for i in range(family.depth)]
        tuner.detach()
    if family is FAMILIES[0]:
        assert family.depth * 10 * 4 * family.width == 983_040


@every_family
def test_gradients_reach_every_site(family):
    """After one step, since LoRA's B starts at 0."""
    for entry in (dict(type='LoRA', rank=2), dict(type='VPT', length=2)):
        backbone, tuner = randomised(build(family.name, 4 * family.patch)), TUNERS.build(entry)
        tuner.attach(backbone)
        parameters = dict(tuner.trainable())
        optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            backbone(images(2, 4 * family.patch)).pow(3).sum().backward()
            optimizer.step()
        assert len(parameters) == dict(LoRA=4, VPT=2)[entry['type']]
        assert [
            name for name, p in parameters.items() if p.grad is None or not p.grad.abs().max() > 1e-6
        ] == []


@every_family
def test_images_are_prepared_as_timm_does_and_the_folder_keeps_it(tmp_path, family):
    backbone, tuners, head = build(family.name, 224), [dict(type='LoRA', rank=2)], dict(type='Linear')
    cfg = timm.data.resolve_model_data_config(
        timm.create_model(family.name, num_classes=0, **dict(SMALL, img_size=224))
    )
    theirs = timm.data.create_transform(**dict(cfg, input_size=(3, 224, 224)))
    photograph = Image.fromarray(load_sample_images().images[0])
    assert torch.allclose(
        build_transform(None, **vars(backbone.preprocessing))(photograph), theirs(photograph), atol=1e-6
    )
    model = build_classifier(backbone, tuners, head, ['cat', 'dog']).eval()
    torch.nn.init.normal_(model.head.fc.weight)
    settings = dict(
        model=dict(tuners=tuners, head=head, tasks={}, shared='.*'),
        dataset={},
        train={},
        evaluation={},
        seed=0,
    )
    save_model(model, tmp_path / 'model', dict(settings=settings, metrics={}))
    assert load_model(tmp_path / 'model').backbone.preprocessing == backbone.preprocessing
    given = pipeline(model=tmp_path / 'model', device='cpu')(photograph)
    with torch.no_grad():
        expected = model(theirs(photograph)[None]).softmax(-1)[0].sort(descending=True).values
    assert given['scores'] == pytest.approx(expected.tolist(), abs=1e-5)
