"""Hydra of width 2, ViT-B/16 IN-21k (orig), VTAB-1k's CIFAR-100.

    python tools/train.py configs/vitb16_hydra_vtab_cifar.py

Kim et al. 2023, arXiv:2309.06922. The values are those of the released config for this task: AdamW at 5e-4,
weight decay 1e-4, batch 16, s = 0.1, dropout 0.2. Its 100 epochs are the first of a schedule of 500. Not
measured.
"""

_base_ = ['_base_/models/vitb16_orig_in21k.py', '_base_/recipes/fact2023.py']

model = dict(
    backbone=dict(
        kwargs=dict(drop_path_rate=0.1),
        preprocessing=dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ),
    tuners=[dict(type='Hydra', width=2, scale=0.1, dropout=0.2)],
)
dataset = {
    split: dict(type='VTAB', task='cifar', split=part)
    for split, part in (('train', 'train+val'), ('test', 'test'))
}
train = dict(
    optimizer=dict(lr=5e-4),
    lr_scheduler=dict(T_max=500, eta_min=0.02),
    dataloader=dict(batch_size_per_gpu=16),
)
