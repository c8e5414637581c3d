"""ResNet-50, ImageNet-1k, torchvision's second weights."""

model = dict(
    backbone=dict(type='torchvision', name='resnet50', weights='IMAGENET1K_V2'), head=dict(type='Linear')
)
