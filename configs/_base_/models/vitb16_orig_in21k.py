"""ViT-B/16, ImageNet-21k, the original checkpoint, which VPT, FacT and ModelScope tuned.

timm's default is another checkpoint: augreg.
"""

model = dict(backbone=dict(type='timm', name='vit_base_patch16_224.orig_in21k'), head=dict(type='Linear'))
