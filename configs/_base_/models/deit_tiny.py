"""DeiT-Tiny/16, ImageNet-1k."""

model = dict(backbone=dict(type='timm', name='deit_tiny_patch16_224.fb_in1k'), head=dict(type='Linear'))
