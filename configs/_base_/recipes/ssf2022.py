"""SSF's recipe for FGVC.   Lian et al. 2022, arXiv:2210.08823, and its released scripts

AdamW with weight decay 0.05. 100 epochs, the first 10 of warmup, batch 64 (32 on each of two GPUs). Random
resized crops and flips, mixup 0.8 or cutmix 1 on every batch, label smoothing 0.1, and an average of the
trained parameters.

Some settings differ by dataset:
- train.optimizer.lr is 1e-2 for CUB and Flowers (as here), 2e-2 for Cars, 2e-4 for NABirds, 2.5e-4 for Dogs;
- train.ema is 0.9998 (as here), and 0.999 for Flowers;
- model.backbone.kwargs.drop_path_rate is 0, and 0.1 for NABirds and Flowers. No recipe can set this.

The code differs in the following. The code resizes crops bilinearly or bicubically at random; vet resizes
them as the backbone is evaluated. The code's rate starts at 1e-7 and changes by epoch, with ten more epochs
at the last rate, 1e-8. The code reports the best epoch of the images that it evaluates on; here the last
epoch counts. Mean and std 0.5 and the crop of 0.9 are the checkpoint's own.
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
