"""DigitsViT: the small ViT that ships with vet, so that the quickstart needs no download.

configs/digits_vit_pretrain.py trained its weights, digits_vit.safetensors, from random numbers, with torch
2.15.0 on a CPU. Other versions of torch and other CPUs round differently, so `make backbone` trains weights
that differ a little. Model folders name the shipped weights by their SHA256, so the shipped file must not
change. Data: the digits 0 to 4 of scikit-learn's load_digits (BSD-3-Clause), a copy of the test part of UCI's
"Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998, CC BY 4.0). Licence of the weights:
Apache-2.0, as vet.
"""

from pathlib import Path

from vet.backbones.timm import timm_backbone
from vet.core.backbone import Backbone
from vet.core.permits import FLAG, permits
from vet.registry import BACKBONES

WEIGHTS = Path(__file__).with_name('digits_vit.safetensors')
SHA256 = '659eb49c3f8a8270b2665616d093df396ad5b1507a7bbf751b5d365b458cebf1'
ARCHITECTURE = dict(img_size=8, patch_size=2, embed_dim=64, depth=6, num_heads=4)


@BACKBONES.register_module()
@permits(pretrained=FLAG)
def DigitsViT(pretrained: bool = True) -> Backbone:
    """A ViT of 6 blocks, 64 wide, on 8 x 8 images in patches of 2 x 2: 0.3 million parameters.

    pretrained: on the digits 0 to 4 of scikit-learn's load_digits, by configs/digits_vit_pretrain.py.
    """
    settings = dict(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)
    backbone = timm_backbone(
        'vit_tiny_patch16_224',
        pretrained=False,
        checkpoint=WEIGHTS if pretrained else None,
        preprocessing=settings,
        kwargs=ARCHITECTURE,
    )
    backbone.identity = dict(type='DigitsViT', pretrained=pretrained, sha256=backbone.identity['sha256'])
    return backbone
