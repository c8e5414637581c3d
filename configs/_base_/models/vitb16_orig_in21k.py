"""ViT-B/16, ImageNet-21k, the original checkpoint that VPT, FacT and ModelScope tuned (not augreg,
timm's default).
"""

model = dict(backbone=dict(type='timm', name='vit_base_patch16_224.orig_in21k'), head=dict(type='Linear'))
