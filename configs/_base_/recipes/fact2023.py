"""FacT's recipe for VTAB-1k, also Convpass's and RepAdapter's.

Jie and Deng 2023, arXiv:2212.03145, and its released code

AdamW at 1e-3 with weight decay 1e-4, 100 epochs of which 10 of warmup, batch 64; images resized to 224 x 224,
no augmentation. The tuner's scale is chosen for each task; a suite gives the grid:
benchmarks/suites/vtab1k.py.

Not expressed: drop path 0.1, which a suite sets by 'model.backbone.kwargs.drop_path_rate', and ImageNet's
mean and std, by 'model.backbone.preprocessing'. The code decays vectors too, leaves the last 40 of 1,000
images of each epoch out, and steps the rate by epoch, from 1e-6. It reports the best of every tenth epoch on
the test images; here the last counts.
"""

train = dict(
    max_epochs=100,
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4),
    lr_scheduler=dict(type='CosineAnnealingLR', warmup_epochs=10, eta_min=0.01),
    dataloader=dict(batch_size_per_gpu=64, workers_per_gpu=4),
    transform=[dict(type='Resize', size=[224, 224], interpolation='bicubic')],
)
evaluation = dict(
    metrics='accuracy',
    select='last',
    every=10,
    dataloader=dict(batch_size_per_gpu=256, workers_per_gpu=4),
    transform=[dict(type='Resize', size=[224, 224], interpolation='bicubic')],
)
