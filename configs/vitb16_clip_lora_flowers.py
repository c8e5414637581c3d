"""CLIP-LoRA's image half: LoRA of rank 2, ViT-B/16 CLIP, 16 images of each class of Oxford Flowers 102.

    python tools/train.py configs/vitb16_clip_lora_flowers.py --cfg-options model.head.file=FILE

Zanella and Ben Ayed 2024, arXiv:2405.18541. The values are those of the released code with `--encoder
vision`: 500 steps for each image of a class, batch 32, AdamW at 2e-4 down to 1e-6, weight decay 0.01, and
an update of alpha / sqrt(rank). FILE holds the text embeddings of the class names. The images are not those
of CoOp's split. Not measured.
"""

_shots = 16
model = dict(
    backbone=dict(type='timm', name='vit_base_patch16_clip_quickgelu_224.openai', classifier=True),
    tuners=[dict(type='LoRA', rank=2, alpha=1, variant='rslora', dropout=0.25, parts='qkv')],
    head=dict(type='Text', file='embeddings.safetensors'),
)
dataset = dict(
    train=dict(type='FewShot', dataset=dict(type='Flowers102', split='train+val'), shots=_shots),
    test=dict(type='Flowers102', split='test'),
)
train = dict(
    max_epochs=157,  # 500 x 16 steps of 51 batches
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-2),
    lr_scheduler=dict(type='CosineAnnealingLR', eta_min=0.005),
    groups=[dict(params=r'head\..*', lr_factor=1e-6)],  # the texts hardly move
    dataloader=dict(batch_size_per_gpu=32, workers_per_gpu=2),
    transform=[dict(type='RandomResizedCrop', scale=[0.08, 1.0]), dict(type='RandomHorizontalFlip')],
)
evaluation = dict(metrics='accuracy', select='last', every=157)
