"""Adapter+'s recipe for FGVC.   Steitz and Roth 2024, arXiv:2406.06820, and its released code

AdamW at 1e-3 (full fine-tuning: 1e-4) with weight decay 1e-4. 100 epochs, the first 10 of warmup, batch 64.
Random resized crops of 8 to 100 % and flips. Evaluation on a centre crop of 0.875. Three seeds, the last
epoch. On Flowers the recipe trains on train + val.

This config does not set drop path 0.1; a suite sets it by 'model.backbone.kwargs.drop_path_rate' (the code's
adapters drop paths too). The code resizes crops bilinearly or bicubically at random; vet resizes them as the
backbone is evaluated. The code's rate starts at a hundredth and changes by epoch. Mean and std are ImageNet's
by our notes, and the checkpoint's own (0.5) in the released code. A suite chooses by
'model.backbone.preprocessing'.
"""

train = dict(
    max_epochs=100,
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4),
    lr_scheduler=dict(type='CosineAnnealingLR', warmup_epochs=10, eta_min=1e-3),
    dataloader=dict(batch_size_per_gpu=64, workers_per_gpu=4),
    transform=[dict(type='RandomResizedCrop', scale=[0.08, 1.0]), dict(type='RandomHorizontalFlip')],
)
evaluation = dict(
    metrics='accuracy',
    select='last',
    every=10,
    dataloader=dict(batch_size_per_gpu=128, workers_per_gpu=4),
    transform=[dict(type='EvaluationCrop', crop_pct=0.875)],
)
