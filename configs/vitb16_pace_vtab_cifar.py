"""PACE of rank 10, ViT-B/16 IN-21k (orig), VTAB-1k's CIFAR-100.

    python tools/train.py configs/vitb16_pace_vtab_cifar.py

Ni, Zhang, Koniusz 2024, arXiv:2409.17137. The values are those of the released command for this task: AdamW
at 1e-3, weight decay 1e-4, 300 epochs, batch 64, sigma 1.2, lambda 1; its schedule ends at 1e-5. Not
measured.
"""

_base_ = ['_base_/models/vitb16_orig_in21k.py', '_base_/recipes/fact2023.py']

model = dict(
    backbone=dict(
        kwargs=dict(drop_path_rate=0.1),
        preprocessing=dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ),
    tuners=[dict(type='PACE', rank=10, sigma=1.2, weight=1.0)],
)
dataset = {
    split: dict(type='VTAB', task='cifar', split=part)
    for split, part in (('train', 'train+val'), ('test', 'test'))
}
train = dict(max_epochs=300, lr_scheduler=dict(eta_min=0.01))
