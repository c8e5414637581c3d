"""ViT-B/16, ImageNet-21k, the augreg checkpoint that SSF and GPS tuned."""

model = dict(backbone=dict(type='timm', name='vit_base_patch16_224.augreg_in21k'), head=dict(type='Linear'))
