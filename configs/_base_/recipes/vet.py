"""The project's own recipe: AdamW with warmup and cosine, random resized crops and flips.

Trains on the official training split alone, never on validation images (on Flowers, the setting of ten images
a class). The last epoch counts; a validation split, where there is one, is only looked at.
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
