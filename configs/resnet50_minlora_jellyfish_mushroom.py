"""minLoRA's system, LoRA r=16 on every nn.Linear (48,768 parameters), ResNet-50: jellyfish and mushrooms.

    python tools/train.py configs/resnet50_minlora_jellyfish_mushroom.py --data-root DATA_ROOT

Not measured: no weights at hand.
"""

_base_ = ['minlora_jellyfish_mushroom.py']

dataset = dict(
    train=dict(classes='imagenet-1k', label_map=dict(jellyfish=107, mushroom=947)),
    test=dict(classes='imagenet-1k', label_map=dict(jellyfish=107, mushroom=947)),
)
model = dict(
    backbone=dict(
        _delete_=True, type='torchvision', name='resnet50', weights='IMAGENET1K_V2', classifier=True
    )
)
