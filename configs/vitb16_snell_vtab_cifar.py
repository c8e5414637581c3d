"""SNELL of rank 32, ViT-B/16 IN-21k (orig), VTAB-1k's CIFAR-100.

    python tools/train.py configs/vitb16_snell_vtab_cifar.py

Shen et al. 2024, arXiv:2411.01800. The values are those of the released script for this task: AdamW at
1e-3, weight decay 0.01, 200 epochs, batch 16, a sparsity of 0.9. The dropout of its branch is not here. Not
measured.
"""

_base_ = ['_base_/tasks/vitb16_vtab_cifar.py']

model = dict(tuners=[dict(type='SNELL', rank=32, sparsity=0.9)])
train = dict(
    max_epochs=200,
    optimizer=dict(weight_decay=0.01),
    lr_scheduler=dict(eta_min=0.01),
    dataloader=dict(batch_size_per_gpu=16),
)
