"""minLoRA's system: LoRA r=16 on every nn.Linear of MobileNetV2 (only its classifier), jellyfish and
mushrooms.

    python tools/train.py configs/minlora_jellyfish_mushroom.py --data-root DATA_ROOT \
        --work-dir runs/minlora \
        --cfg-options model.backbone.checkpoint=DATA_ROOT/weights/mobilenetv2_100.safetensors
    python tools/export.py runs/minlora runs/mobilenetv2_tuned.safetensors      # merged plain weights

The pretrained classifier is kept, with its 1,001 outputs. The two folders are two of ImageNet's classes.

This config is a walk-through, not an accuracy claim: the weights have seen these ImageNet images in training.
docs/tuners.md has the numbers.
"""

dataset = dict(
    train=dict(
        type='ImageFolder',
        path='seed-images/jellyfish-mushroom',
        split='train',
        classes='imagenet-1k+background',
        label_map=dict(jellyfish=108, mushroom=948),
    ),
    test=dict(
        type='ImageFolder',
        path='seed-images/jellyfish-mushroom',
        split='test',
        classes='imagenet-1k+background',
        label_map=dict(jellyfish=108, mushroom=948),
    ),
)
model = dict(
    backbone=dict(
        type='timm',
        name='mobilenetv2_100',
        classifier=True,
        kwargs=dict(num_classes=1001, pad_type='same'),
        preprocessing=dict(mean=[0.5] * 3, std=[0.5] * 3),
    ),
    tuners=[dict(type='LoRA', rank=16, alpha=1, at='linear')],
    head=dict(type='Pretrained'),
)
train = dict(
    max_epochs=10,
    optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.0),
    dataloader=dict(batch_size_per_gpu=8, workers_per_gpu=0),
    transform=[dict(type='RandomResizedCrop', scale=[0.5, 1.0]), dict(type='RandomHorizontalFlip')],
)
evaluation = dict(dataloader=dict(workers_per_gpu=0))
