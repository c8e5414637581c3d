"""SSF's recipe for FGVC.   Lian et al. 2022, arXiv:2210.08823, and its released scripts

AdamW with weight decay 0.05, 100 epochs of which 10 of warmup, batch 64 (32 on each of two GPUs); random
resized crops and flips, mixup 0.8 or cutmix 1 on every batch, label smoothing 0.1, an average of the trained
parameters.

By dataset: train.optimizer.lr is 1e-2 for CUB and Flowers (as here), 2e-2 for Cars, 2e-4 for NABirds, 2.5e-4
for Dogs; train.ema 0.9998 (as here), for Flowers 0.999; model.backbone.kwargs.drop_path_rate 0, for NABirds
and Flowers 0.1, which no recipe can set.

Not expressed: its crops are resized bilinearly or bicubically at random, here as the backbone is evaluated.
Its rate starts at 1e-7 and is stepped by epoch, with ten epochs more at the last rate, 1e-8. Its code reports
the best epoch of the images that it evaluates on; here the last counts. Mean and std 0.5 and the crop of 0.9
are the checkpoint's own.
"""

train = dict(
    max_epochs=100,
    optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.05),
    lr_scheduler=dict(type='CosineAnnealingLR', warmup_epochs=10, eta_min=1e-6),
    dataloader=dict(batch_size_per_gpu=64, workers_per_gpu=4),
    transform=[dict(type='RandomResizedCrop', scale=[0.08, 1.0]), dict(type='RandomHorizontalFlip')],
    mixup=0.8,
    cutmix=1.0,
    label_smoothing=0.1,
    ema=0.9998,
)
evaluation = dict(
    metrics='accuracy', select='last', every=10, dataloader=dict(batch_size_per_gpu=128, workers_per_gpu=4)
)
