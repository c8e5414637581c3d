"""Hydra of width 2, ViT-B/16 IN-21k (orig), VTAB-1k's CIFAR-100.

    python tools/train.py configs/vitb16_hydra_vtab_cifar.py

Kim et al. 2023, arXiv:2309.06922. The values are those of the released config for this task: AdamW at 5e-4,
weight decay 1e-4, batch 16, s = 0.1, dropout 0.2. Its 100 epochs are the first of a schedule of 500. Not
measured.
"""

_base_ = ['_base_/tasks/vitb16_vtab_cifar.py']

model = dict(tuners=[dict(type='Hydra', width=2, scale=0.1, dropout=0.2)])
train = dict(
    optimizer=dict(lr=5e-4),
    lr_scheduler=dict(T_max=500, eta_min=0.02),
    dataloader=dict(batch_size_per_gpu=16),
)
