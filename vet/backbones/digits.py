"""DigitsViT: the small ViT that ships with vet, so that the quickstart needs no download."""

from pathlib import Path

from vet.backbones.timm import timm_backbone
from vet.core.backbone import Backbone
from vet.registry import BACKBONES

WEIGHTS = Path(__file__).with_name('digits_vit.safetensors')
ARCHITECTURE = dict(img_size=8, patch_size=2, embed_dim=64, depth=6, num_heads=4)


@BACKBONES.register_module()
def DigitsViT(pretrained: bool = True) -> Backbone:
    """A ViT of 6 blocks, 64 wide, on 8 x 8 images in patches of 2 x 2: 0.3 million parameters.

    pretrained: on the digits 0 to 4 of scikit-learn's load_digits, by `make backbone` (configs/digits_vit_pretrain.py).
    """
    settings = dict(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)
    backbone = timm_backbone('vit_tiny_patch16_224', pretrained=False, checkpoint=WEIGHTS if pretrained else None,
                             preprocessing=settings, kwargs=ARCHITECTURE)
    backbone.identity = dict(type='DigitsViT', pretrained=pretrained, sha256=backbone.identity['sha256'])
    return backbone
