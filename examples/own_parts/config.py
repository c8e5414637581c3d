"""Even or odd: LoRA on the convolutions of your own backbone, with your own dataset and head.

python tools/train.py examples/own_parts/config.py
"""

custom_imports = dict(imports=['own_parts'])
dataset = dict(train=dict(type='Parity', split='train'), test=dict(type='Parity', split='test'))
model = dict(
    backbone=dict(type='RandomConv', width=48),
    tuners=[dict(type='LoRA', rank=4, at='weight')],
    head=dict(type='CosineHead', scale=20.0),
)
train = dict(
    max_epochs=5,
    optimizer=dict(type='AdamW', lr=1e-2),
    dataloader=dict(workers_per_gpu=0),
    transform=[dict(type='RandomAffine', degrees=5)],
)
evaluation = dict(dataloader=dict(workers_per_gpu=0))
