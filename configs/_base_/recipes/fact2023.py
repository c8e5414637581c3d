"""FacT's recipe for VTAB-1k, which Convpass and RepAdapter use too.

Jie and Deng 2023, arXiv:2212.03145, and its released code

AdamW at 1e-3 with weight decay 1e-4. 100 epochs, the first 10 of warmup, batch 64. Images are resized to
224 x 224, without augmentation. The tuner's scale is chosen for each task; benchmarks/suites/vtab1k.py gives
the grid.

This config does not set drop path 0.1 or ImageNet's mean and std; a suite sets them by
'model.backbone.kwargs.drop_path_rate' and 'model.backbone.preprocessing'. The code decays vectors too, leaves
out the last 40 of 1,000 images in each epoch, and changes the rate by epoch, from 1e-6. The code reports the
best of every tenth epoch on the test images; here the last epoch counts.
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
