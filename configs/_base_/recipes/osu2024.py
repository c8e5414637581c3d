"""The recipe for CIFAR-100 of Ohio State's unifying study.   Mai et al. 2024, arXiv:2409.16434

AdamW, 40 epochs of which 4 of warmup, batch 64, random resized crops and flips. The learning rate is 5e-4 or
1e-3 (as here) and drop path 0, 0.1 or 0.2, chosen for each method; a suite gives them as a grid over
'train.optimizer.lr' and 'model.backbone.kwargs.drop_path_rate'. Mean and std 0.5 are the checkpoint's own.

Interpreted: weight decay 1e-4, the crop's scale of 8 to 100 % (torchvision's default) and the evaluation crop
(the checkpoint's own); what was seen of the study does not say them.
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
