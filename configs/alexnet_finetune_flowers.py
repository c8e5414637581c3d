"""Fine-tunes AlexNet's last two convolutions, concatenated pools and a new MLP head on Oxford Flowers 102.

    python tools/train.py configs/alexnet_finetune_flowers.py

Not measured: no weights at hand.
"""

_base_ = ['_base_/datasets/flowers102.py', '_base_/recipes/vet.py']

model = dict(
    backbone=dict(type='torchvision', name='alexnet', pool='catavgmax'),
    tuners=[dict(type='Partial', names=['features.8.', 'features.10.'])],
    head=dict(type='MLP', hidden=512, dropout=0.5),
)
train = dict(optimizer=dict(lr=1e-4), head_lr=1e-3)
