"""PACE of rank 10, ViT-B/16 IN-21k (orig), VTAB-1k's CIFAR-100.

    python tools/train.py configs/vitb16_pace_vtab_cifar.py

Ni, Zhang, Koniusz 2024, arXiv:2409.17137. The values are those of the released command for this task: AdamW
at 1e-3, weight decay 1e-4, 300 epochs, batch 64, sigma 1.2, lambda 1; its schedule ends at 1e-5. Not
measured.
"""

_base_ = ['_base_/tasks/vitb16_vtab_cifar.py']

model = dict(tuners=[dict(type='PACE', rank=10, sigma=1.2, weight=1.0)])
train = dict(max_epochs=300, lr_scheduler=dict(eta_min=0.01))
