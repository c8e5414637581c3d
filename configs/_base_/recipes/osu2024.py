"""The recipe for CIFAR-100 of Ohio State's unifying study.   Mai et al. 2024, arXiv:2409.16434

AdamW, 40 epochs, the first 4 of warmup, batch 64, random resized crops and flips. The learning rate is 5e-4
or 1e-3 (here 1e-3), and drop path 0, 0.1 or 0.2. The study chooses both for each method. A suite gives both
as a grid over 'train.optimizer.lr' and 'model.backbone.kwargs.drop_path_rate'. Mean and std 0.5 are the
checkpoint's own.

Our interpretation: weight decay 1e-4, a crop of 8 to 100 % (torchvision's default), and the checkpoint's own
evaluation crop. The parts of the study that we saw do not say these settings.
"""

train = dict(
    max_epochs=40,
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4),
    lr_scheduler=dict(type='CosineAnnealingLR', warmup_epochs=4),
    dataloader=dict(batch_size_per_gpu=64, workers_per_gpu=4),
    transform=[dict(type='RandomResizedCrop', scale=[0.08, 1.0]), dict(type='RandomHorizontalFlip')],
)
evaluation = dict(
    metrics='accuracy', select='last', every=4, dataloader=dict(batch_size_per_gpu=128, workers_per_gpu=4)
)
