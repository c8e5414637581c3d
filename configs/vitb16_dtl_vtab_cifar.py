"""DTL of rank 2, ViT-B/16 IN-21k (orig), VTAB-1k's CIFAR-100.

    python tools/train.py configs/vitb16_dtl_vtab_cifar.py

Fu, Zhu, Wu 2024, arXiv:2312.07856. The values are those of the released script for this task: AdamW at
3e-4, weight decay 0.05, 100 epochs, batch 32, drop path 0.1. For DTL+ the script takes kernel=3 and a rate
of 5e-4. Not measured.
"""

_base_ = ['_base_/tasks/vitb16_vtab_cifar.py']

model = dict(tuners=[dict(type='DTL', rank=2, beta=100.0)])
train = dict(
    optimizer=dict(lr=3e-4, weight_decay=0.05),
    lr_scheduler=dict(eta_min=0.0),
    dataloader=dict(batch_size_per_gpu=32),
)
