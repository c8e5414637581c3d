"""LoRA on the ViT that ships with vet: from handwritten digits 0 to 4, which it was pretrained on, to 5 to 9.
Offline.

python tools/train.py configs/quickstart.py
"""

dataset = dict(
    train=dict(type='Digits', split='train', digits=[5, 6, 7, 8, 9]),
    test=dict(type='Digits', split='test', digits=[5, 6, 7, 8, 9]),
)
model = dict(backbone=dict(type='DigitsViT', lora_length=8), head=dict(type='Linear', num_classes=5))
train = dict(
    max_epochs=30,
    threads=1,
    optimizer=dict(type='AdamW', lr=2e-2, weight_decay=1e-4),
    lr_scheduler=dict(warmup_epochs=2),
    dataloader=dict(batch_size_per_gpu=64, workers_per_gpu=0),
    transform=[dict(type='RandomAffine', degrees=8, translate=(0.06, 0.06))],
)
evaluation = dict(dataloader=dict(batch_size_per_gpu=256, workers_per_gpu=0))
