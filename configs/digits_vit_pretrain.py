"""Pretrains the ViT that ships with vet, from random weights, on the handwritten digits 0 to 4.

`make backbone` runs this config, writes build/digits_vit.safetensors and compares it with the shipped
weights. The shipped file stays as it is.
"""

dataset = dict(
    train=dict(type='Digits', split='train', digits=[0, 1, 2, 3, 4]),
    test=dict(type='Digits', split='test', digits=[0, 1, 2, 3, 4]),
)
model = dict(
    backbone=dict(type='DigitsViT', pretrained=False), tuners=[dict(type='Full')], head=dict(type='Linear')
)
train = dict(
    max_epochs=60,
    threads=1,
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    lr_scheduler=dict(warmup_epochs=3),
    dataloader=dict(batch_size_per_gpu=64, workers_per_gpu=0),
    transform=[dict(type='RandomAffine', degrees=12, translate=(0.1, 0.1), scale=(0.9, 1.1))],
    label_smoothing=0.1,
)
evaluation = dict(dataloader=dict(batch_size_per_gpu=256, workers_per_gpu=0))
