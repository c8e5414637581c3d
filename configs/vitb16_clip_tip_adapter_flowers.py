"""Tip-Adapter-F: a cache of 16 images of each class, ViT-B/16 CLIP, Oxford Flowers 102.

    python tools/train.py configs/vitb16_clip_tip_adapter_flowers.py --cfg-options model.head.file=FILE

Zhang et al. 2022, arXiv:2207.09511. The values are those of the released config for this dataset, which has
ResNet-50: AdamW at 1e-3, 20 epochs, batch 256, alpha 10 and beta 1. With train.max_epochs=0 this is Tip-
Adapter. FILE holds the text embeddings of the class names. The images are not those of CoOp's split. Not
measured.
"""

_shots = 16
model = dict(
    backbone=dict(type='timm', name='vit_base_patch16_clip_quickgelu_224.openai', classifier=True),
    tuners=[dict(type='LinearProbe')],
    head=dict(type='TipAdapter', file='embeddings.safetensors', shots=_shots, alpha=10.0, beta=1.0),
)
dataset = dict(
    train=dict(type='FewShot', dataset=dict(type='Flowers102', split='train+val'), shots=_shots),
    test=dict(type='Flowers102', split='test'),
)
train = dict(
    max_epochs=20,
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-2, eps=1e-4),
    lr_scheduler=dict(type='CosineAnnealingLR'),
    dataloader=dict(batch_size_per_gpu=256, workers_per_gpu=2),
    transform=[dict(type='RandomResizedCrop', scale=[0.5, 1.0]), dict(type='RandomHorizontalFlip')],
)
evaluation = dict(metrics='accuracy', select='last', every=20)
