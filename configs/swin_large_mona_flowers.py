"""Mona of width 64, Swin-L IN-22k, Oxford Flowers 102.

    python tools/train.py configs/swin_large_mona_flowers.py

Yin et al. 2024, arXiv:2408.08345. The values are those of the released config: AdamW at 3.125e-5 for a
batch of 16, weight decay 0.05, 100 epochs, the first 20 of warmup, gradients clipped at 5, drop path 0.3.
Not measured.
"""

_base_ = ['_base_/datasets/flowers102.py']

model = dict(
    backbone=dict(
        type='timm',
        name='swin_large_patch4_window7_224.ms_in22k',
        kwargs=dict(drop_path_rate=0.3),
        preprocessing=dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ),
    tuners=[dict(type='Mona', width=64)],
    head=dict(type='Linear'),
)
train = dict(
    max_epochs=100,
    optimizer=dict(type='AdamW', lr=3.125e-5, weight_decay=0.05),
    lr_scheduler=dict(type='CosineAnnealingLR', warmup_epochs=20, eta_min=0.01),
    clip_norm=5.0,
    dataloader=dict(batch_size_per_gpu=16, workers_per_gpu=2),
    transform=[dict(type='RandomResizedCrop', scale=[0.08, 1.0]), dict(type='RandomHorizontalFlip')],
)
evaluation = dict(
    metrics='accuracy',
    select='last',
    every=10,
    dataloader=dict(batch_size_per_gpu=32, workers_per_gpu=2),
    transform=[dict(type='EvaluationCrop', crop_pct=0.875)],
)
