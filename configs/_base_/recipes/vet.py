"""The project's own recipe: AdamW with warmup and cosine, random resized crops and flips.

The recipe trains only on the official training split, never on validation images (on Flowers, this is the
setting of ten images per class). The last epoch counts. If there is a validation split, the run only reports
its results.
"""

train = dict(
    max_epochs=20,
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=1e-4),
    lr_scheduler=dict(type='CosineAnnealingLR', warmup_epochs=1),
    dataloader=dict(batch_size_per_gpu=64, workers_per_gpu=2),
    transform=[dict(type='RandomResizedCrop', scale=[0.4, 1.0]), dict(type='RandomHorizontalFlip')],
)
evaluation = dict(
    metrics='accuracy', dataloader=dict(batch_size_per_gpu=128, workers_per_gpu=2), select='last', every=5
)
