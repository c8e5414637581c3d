"""VTAB-1k's CIFAR-100 on ViT-B/16 IN-21k (orig), as the released code of most methods has it: FacT's recipe,
ImageNet's mean and deviation, and drop path 0.1.
"""

_base_ = ['../models/vitb16_orig_in21k.py', '../recipes/fact2023.py']

model = dict(
    backbone=dict(
        kwargs=dict(drop_path_rate=0.1),
        preprocessing=dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    )
)
dataset = {
    split: dict(type='VTAB', task='cifar', split=part)
    for split, part in (('train', 'train+val'), ('test', 'test'))
}
