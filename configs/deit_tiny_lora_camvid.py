"""LoRA of rank 10 on the queries, keys and values of DeiT-Tiny, with a linear head for masks: CamVid.

CamVid's street scenes (Brostow et al. 2008): 367 / 101 / 233 images of 240 x 180 pixels, 11 classes. The
number 11 stands for pixels without a class. Images are resized to 176 x 240 (height x width), which are
11 x 15 patches.

    vet train configs/deit_tiny_lora_camvid.py --data-root DIR

DIR has camvid/{train,val,test}/{images,masks}/.
"""

_CLASSES = 'sky building pole road pavement tree sign fence car pedestrian cyclist'.split()
_SIZE = [176, 240]

model = dict(
    backbone=dict(
        type='timm', name='deit_tiny_patch16_224', kwargs=dict(img_size=_SIZE), preprocessing=dict(size=_SIZE)
    ),
    tuners=[dict(type='LoRA', rank=10, at='attn.qkv')],
    head=dict(type='LinearMask'),
)
dataset = {
    split: dict(type='MaskFolder', path='camvid', split=split, classes=_CLASSES, ignore=[11])
    for split in ('train', 'val', 'test')
}
train = dict(
    max_epochs=12,
    loss=dict(type='CrossEntropyDiceLoss'),
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=1e-4),
    head_lr=1e-2,
    lr_scheduler=dict(warmup_epochs=1),
    dataloader=dict(batch_size_per_gpu=8),
    transform=[dict(type='Resize', size=_SIZE), dict(type='RandomHorizontalFlip')],
)
evaluation = dict(transform=[dict(type='Resize', size=_SIZE)], every=12)
